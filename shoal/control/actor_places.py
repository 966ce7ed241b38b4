"""Where each life of an actor was sent, and which wait because no node fits.

Owns both. Which node it is to be is decided by the policy (`placing`), and what an actor does without one by the directory
(`core.actors`). A life that fits nowhere is tried again whenever nodes have more than before (`place_again`), and its driver hears once
that it waits; for a while after a restart that says nothing, since nodes are expected to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shoal.control.groups import Groups
from shoal.control.jobs import Jobs
from shoal.control.nodes import Nodes
from shoal.control.orders import Orders
from shoal.control.placing import Chosen
from shoal.core.actors import ActorDirectory
from shoal.messages.control import ActorWaits, PlaceActor
from shoal.messages.node import GROUP_REMOVED, UNPLACEABLE


class ActorPlaces:
    """See the module's docstring.

    Attributes:
        expecting: Nodes are expected to come back that another control store knew.

    Args:
        save: Write an actor down as it is now.
    """

    def __init__(
        self,
        nodes: Nodes,
        actors: ActorDirectory,
        jobs: Jobs,
        groups: Groups,
        orders: Orders,
        save: Callable[[bytes], None],
    ) -> None:
        self.expecting = False
        self._nodes = nodes
        self._actors = actors
        self._jobs = jobs
        self._groups = groups
        self._orders = orders
        self._save = save
        self._sent_to: dict[bytes, bytes] = {}
        self._unplaced: dict[bytes, tuple[PlaceActor, str]] = {}

    def restore(self, sent_to: dict[bytes, bytes], *, expecting: bool) -> None:
        """Where an earlier control store has sent those that live."""
        self._sent_to = sent_to
        self.expecting = expecting

    def node_of(self, actor_id: bytes) -> bytes:
        """Where the present life of an actor was sent; b"" if nowhere."""
        return self._sent_to.get(actor_id, b"")

    def sent_to(self, node_id: bytes) -> list[bytes]:
        """The actors whose present life was sent to a node."""
        return [actor_id for actor_id, at in self._sent_to.items() if at == node_id]

    def unplaced(self) -> Iterator[tuple[PlaceActor, str]]:
        """The lives that fit nowhere, and why."""
        return iter(self._unplaced.values())

    def why_unplaced(self, actor_id: bytes) -> str:
        """Why an actor is nowhere; "" if it is somewhere."""
        return self._unplaced[actor_id][1] if actor_id in self._unplaced else ""

    def forget(self, actor_id: bytes) -> None:
        """An actor is dead."""
        self._sent_to.pop(actor_id, None)
        self._unplaced.pop(actor_id, None)

    def place(self, order: PlaceActor, *, again: bool = False) -> bool:
        """Send a life somewhere; whether that was possible. What fits nowhere waits, and its driver hears so once."""
        spec = order.spec
        gone = self._groups.why_gone(spec.placement_shape.strategy)
        chosen = Chosen(b"", gone, never=True) if gone else self._nodes.choose(spec)
        if chosen.node_id:
            self._unplaced.pop(spec.actor_id, None)
            self._sent_to[spec.actor_id] = chosen.node_id
            # As they are now: it may have waited for long.
            order.job = self._jobs.get(order.job_id)
            order.job_over = self._jobs.is_over(order.job_id)
            self._orders.give(chosen.node_id, order)
            return True
        if chosen.never:
            self._unplaced.pop(spec.actor_id, None)
            kind = GROUP_REMOVED if gone else UNPLACEABLE
            self._actors.on_refused(spec.actor_id, order.incarnation, chosen.reason, kind)
            return False
        self._sent_to.pop(spec.actor_id, None)
        self._unplaced[spec.actor_id] = order, chosen.reason
        if not again and not chosen.soon and not self.expecting:
            waits = ActorWaits(order.job_id, spec.name, spec.class_name, chosen.reason)
            # The driver's node; of a job whose driver has gone, that of its creator.
            driver_node = self._jobs.node_of(order.job_id) or self._nodes.home_of(spec.owner)
            self._orders.give(driver_node, waits)
        return False

    def place_again(self) -> None:
        """Nodes have more than before, or something else has changed: what fitted nowhere may fit now."""
        self._place_unplaced(again=True)

    def expect_no_more(self) -> None:
        """No more nodes are expected to come back."""
        self.expecting = False
        # Of these nobody has heard yet.
        self._place_unplaced(again=False)

    def _place_unplaced(self, *, again: bool) -> None:
        for actor_id, (order, _) in list(self._unplaced.items()):
            actor = self._actors.get(actor_id)
            if actor is None or actor.incarnation != order.incarnation:
                del self._unplaced[actor_id]
            elif self.place(order, again=again):
                self._save(actor_id)
