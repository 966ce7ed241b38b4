"""What the table of objects (`core.references`) has decided, for the runtime to carry out. Each says one thing; who is told how is up to
`runtime.borrowing`, which may put several into one message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.messages.values import Stored

if TYPE_CHECKING:
    from shoal.core.references import Entry


class FreeValue(NamedTuple):
    """The value of an owned object is to be freed."""

    value: Stored


class GiveUp(NamedTuple):
    """Tell the owner that this process gives up so many registrations. `vouchers`: those among them that others have made."""

    owner: str
    object_id: bytes
    registrations: int
    vouchers: tuple[tuple[str, int], ...] = ()


class AskToRecount(NamedTuple):
    """Ask a borrower how many registrations it knows of that `voucher`, which has died, made for it."""

    borrower: str
    voucher: str
    object_ids: list[bytes]


class DropOrphan(NamedTuple):
    """This process has let go of a value whose owner has ended: nobody will say when it is dead."""

    owner: str
    value: Stored


class RegisterBorrower(NamedTuple):
    """Ask the owner to register `borrower` for these; `acknowledge(token)` is due when it has."""

    owner: str
    object_ids: list[bytes]
    borrower: str
    token: int


class EndActor(NamedTuple):
    """The last handle of an actor is gone."""

    actor_id: bytes


class Forsake(NamedTuple):
    """Borrowers wait for the value of an object that was freed before there was one: those whom nobody covered any more."""

    waiters: list[Any]
    entry: Entry


Effect = FreeValue | GiveUp | DropOrphan | RegisterBorrower | EndActor | Forsake | AskToRecount


class Countdown:
    """Acknowledgements that must come before a reply may leave, and entries held until it has left.

    `reply` is the runtime's: what to do at zero.
    """

    __slots__ = ("held", "missing", "reply")

    def __init__(self) -> None:
        self.missing = 0
        self.held: list[Entry] = []
        self.reply: Any = None
