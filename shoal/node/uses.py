"""What clients of other nodes use of what processes of this node have left: the daemons ask each other (see `node.inquiries`)."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.messages.neighbours import AskAgain, Neighbourly, NothingLeft, UsesAsked, UsesTold
from shoal.messages.values import Location
from shoal.node.inquiries import Ended, Inquiries
from shoal.node.neighbours import Neighbour, Neighbours


class UsesElsewhere:
    """The other nodes, as the inquiries of this one see them."""

    def __init__(self, neighbours: Neighbours, inquiries: Inquiries) -> None:
        self._neighbours = neighbours
        self._inquiries = inquiries
        inquiries.others = self

    # --- what this node wants ------------------------------------------------------------------------------------

    def nodes(self) -> Iterable[bytes]:
        """Those that live."""
        return [node.node_id for node in self._neighbours]

    def ask(self, node_id: bytes, ended: list[Ended]) -> None:
        """Ask a node what its clients use."""
        self._send(node_id, UsesAsked(ended))

    def tell(self, node_id: bytes, number: int, locations: list[Location]) -> None:
        """What our clients use."""
        self._send(node_id, UsesTold(number, locations))

    def ask_again(self, node_id: bytes, address: str) -> None:
        """Our clients use less than a node has heard."""
        self._send(node_id, AskAgain(address))

    def tell_nothing_left(self, node_id: bytes, address: str) -> None:
        """A node need not remember any more what its clients used."""
        self._send(node_id, NothingLeft(address))

    def _send(self, node_id: bytes, message: Neighbourly) -> None:
        node = self._neighbours.get(node_id)
        if node is not None:
            self._neighbours.send(node, message)

    # --- what other nodes say --------------------------------------------------------------------------------------

    def on_asked(self, node: Neighbour, message: UsesAsked) -> None:
        """A node wants to know what our clients use."""
        self._inquiries.on_node_asks(node.node_id, message.ended)

    def on_told(self, node: Neighbour, message: UsesTold) -> None:
        """What the clients of a node use."""
        self._inquiries.on_node_in_use(node.node_id, message.number, message.locations)

    def on_ask_again(self, _node: Neighbour, message: AskAgain) -> None:
        """The clients of a node use less than we have heard."""
        self._inquiries.ask_later(message.address)

    def on_nothing_left(self, node: Neighbour, message: NothingLeft) -> None:
        """A node does not want to hear more."""
        self._inquiries.on_nothing_left(node.node_id, message.address)
