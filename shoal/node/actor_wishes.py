"""What clients want of actors that exist, or are about to: to watch one, to kill one, to let go of one. The control store does it.

Whoever has a handle may be quicker than the news of the actor's creation. So the control store is told who makes it, if that process may
live: then the actor is still to come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.control.link import ControlLink
from shoal.messages.control import DropActor, KillActor, WatchActor
from shoal.messages.node import ActorKill, ActorUnreferenced, ActorWatch
from shoal.node.clients import Client


def actor_handlers(
    control: ControlLink, may_live: Callable[[str], bool]
) -> dict[type, Callable[[Client, Any], None]]:
    """By message. `may_live` tells of an address whether a process is there, as far as this node knows."""

    def owner_of(message: ActorWatch | ActorKill) -> str:
        return message.owner if message.owner and may_live(message.owner) else ""

    def on_watch(client: Client, message: ActorWatch) -> None:
        control.post(WatchActor(message.actor_id, client.number, owner_of(message)))

    def on_kill(_client: Client, message: ActorKill) -> None:
        control.post(KillActor(message.actor_id, message.no_restart, owner_of(message)))

    def on_unreferenced(_client: Client, message: ActorUnreferenced) -> None:
        control.post(DropActor(message.actor_id))

    return {ActorWatch: on_watch, ActorKill: on_kill, ActorUnreferenced: on_unreferenced}
