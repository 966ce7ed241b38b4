"""On which node an actor is to live: the seam between the control store and the policy.

An actor goes where a task of its shape would go that its creator submits, by the view of the cluster that the control store has: `home`,
the node of its creator, is the local one. So the rules of `core.policy` hold for actors, too.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from shoal.core.policy import Demand, Fail, Forward, Infeasible, Local, Wait, choose
from shoal.core.view import View
from shoal.messages.node import ActorSpec


class Chosen(NamedTuple):
    """The node for a life of an actor, or why there is none; `never` if there never will be, `soon` if the cluster can serve it and
    what it waits for is under way (its placement group)."""

    node_id: bytes
    reason: str = ""
    never: bool = False
    soon: bool = False


def choose_node(spec: ActorSpec, view: View, home: bytes, rng: Random) -> Chosen:
    """The node for a life of an actor. `home` is where its creator is, b"" if that node is gone."""
    shape = spec.placement_shape
    view.local = home
    match choose(view, Demand(shape.resources, shape.strategy), rng):
        case Local():
            return Chosen(home)
        case Forward(node_id):
            return Chosen(node_id)
        case Wait(reason):
            return Chosen(b"", reason, soon=True)
        case Infeasible(reason):
            return Chosen(b"", reason)
        case Fail(reason):
            return Chosen(b"", reason, never=True)
