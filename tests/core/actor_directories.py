"""The actors of the tests of the actor directory: what makes them, what happens to them, and what the directory says of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shoal.core.actor_records import Save, Tell
from shoal.core.actors import ActorDirectory, NameTaken
from shoal.messages.node import ActorSpec, Shape
from shoal.messages.values import Inline

JOB = b"job"


def spec(number: int = 1, **fields: Any) -> ActorSpec:
    defaults: dict[str, Any] = {
        "actor_id": number.to_bytes(16, "big"),
        "class_name": "Counter",
        "code_id": b"c" * 16,
        "code": Inline(b""),
        "args": Inline(b""),
        "deps": [],
        "shape": Shape(()),
        "placement_shape": Shape(),
        "owner": "d-1.sock",
        "namespace": "ns",
    }
    return ActorSpec(**(defaults | fields))


def drain(directory: ActorDirectory) -> list[Any]:
    directory.check()
    effects = [e for e in directory.outbox if not isinstance(e, Save)]
    directory.outbox.clear()
    return effects


def start(directory: ActorDirectory, made: ActorSpec, incarnation: int) -> None:
    directory.on_placed(made.actor_id, incarnation, f"w-{incarnation}.sock", 100 + incarnation)
    directory.on_started(made.actor_id, incarnation, b"", "")


def told(effects: list[Any]) -> list[tuple[str, int, str]]:
    """(state, incarnation, cause) of every change that was told."""
    changes = [e.change for e in effects if isinstance(e, Tell)]
    return [(c.state, c.incarnation, c.cause) for c in changes]


# --- random histories ----------------------------------------------------------------------------------------------------


def some_specs(data: st.DataObject) -> list[ActorSpec]:
    """Three actors, of which some want the same name."""
    return [
        spec(
            number,
            name=data.draw(st.sampled_from(["", "n"])),
            max_restarts=data.draw(st.sampled_from([0, 1, 2, -1])),
            detached=data.draw(st.booleans()),
        )
        for number in range(1, 4)
    ]


def create(directory: ActorDirectory, made: ActorSpec) -> bool:
    """Create an actor, unless its name is taken; whether it was."""
    try:
        info = directory.on_create(made, JOB, get_if_exists=False)
    except NameTaken:
        assert directory.lookup("ns", "n") is not None
        return False
    assert info.actor_id == made.actor_id
    return True


def start_if_placed(directory: ActorDirectory, actor_id: bytes, incarnation: int) -> None:
    """What a worker says whose `__init__` has returned; of one that has no worker it comes from nobody."""
    actor = directory.get(actor_id)
    if actor is not None and actor.address:
        directory.on_started(actor_id, incarnation, b"", "")
