"""Which cluster a command is about, and a way to its control store: for those that only look."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from shoal.cli.failures import Unreachable
from shoal.cli.tokens import find_token
from shoal.config import load_config
from shoal.runtime.control_client import ControlClient
from shoal.runtime.joining import AUTO, FoundNode, find_controls, find_nodes, resolve
from shoal.runtime.session_folder import session_root
from shoal.wire.tls import Tls

_OPTIONS = (
    click.option(
        "--address",
        metavar="HOST:PORT",
        envvar="SHOAL_ADDRESS",
        default=AUTO,
        help="The cluster. [default: $SHOAL_ADDRESS, or the newest on this machine]",
    ),
    click.option(
        "--temp-dir", help="Where session folders are. [default: $SHOAL_TMPDIR, /tmp/shoal-UID]"
    ),
    click.option("--tls-cert", type=click.Path(), help="A certificate of the cluster (PEM)."),
    click.option("--tls-key", type=click.Path(), help="The certificate's key (PEM)."),
    click.option("--tls-ca", type=click.Path(), help="The cluster's authority (PEM)."),
)


def of_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which cluster it is about: the arguments of `reach`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def reach(
    address: str, temp_dir: str | None, **tls: str | None
) -> Iterator[tuple[str, ControlClient]]:
    """Where the control store is, and a connection to it."""
    root = session_root(temp_dir)
    nodes = find_nodes(root)
    place = _newest(root, nodes) if address in {AUTO, "local", ""} else resolve(address)
    here = [node for node in nodes if node.file.control == place]
    token = here[0].token() if here else find_token()
    given = {name: os.path.abspath(path) for name, path in tls.items() if path}
    # A node of the cluster on this machine knows how it is spoken with.
    config = load_config(given or (here[0].file.tls if here else {}))
    with ControlClient(place, token, Tls.of(config)) as client:
        yield place, client


def _newest(root: str, nodes: list[FoundNode]) -> str:
    for node in nodes:
        return node.file.control
    for control in find_controls(root):
        if control.alive and control.file is not None:
            return control.file.control
    raise Unreachable(
        f"no cluster runs on this machine (as {root} has it): start one with `shoal start --head`, or say which one is meant with "
        "--address=HOST:PORT"
    )
