"""Questions about the session that have no place in the runtime context."""

from __future__ import annotations

from typing import Any

from shoal.messages.node import ActorNames
from shoal.runtime import current_process


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of living actors.

    Args:
        all_namespaces: Look beyond this job's namespace.

    Returns:
        Names; with `all_namespaces`, dictionaries with the keys "name" and "namespace" instead.
    """
    process = current_process.require()
    found: list[tuple[str, str]] = process.node.query(
        lambda req: ActorNames(req, process.namespace, all_namespaces), list[tuple[str, str]]
    )
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in found]
    return [name for _, name in found]


def get_node_ip_address() -> str:
    """The address by which other nodes reach this one; that of the loopback where there are no others."""
    return current_process.require().registered.node_ip
