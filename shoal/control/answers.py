"""What a node was answered, as long as it may not have the answer: kept for the next control store.

A question that changes something must take effect once, also if a control store ends after the change is durable and before the
answer has arrived. So the number of the message is written down with what it changes, in one commit, and so is the answer to a question;
the control store that starts then knows that it was heard (`Restored.heard`), and answers the same again.

Owns, for each node, which answers are written down. They go when the node says that it has them, or is dead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from shoal.control.journal import Journal
from shoal.control.restoring import ANSWERS, HEARD, key_of_answer
from shoal.messages.records import HeardRecord

_encode: Final = msgspec.msgpack.Encoder().encode


class Heard(NamedTuple):
    """Which message of a node this is. `req` is the number of a question, 0 for a post."""

    session: int
    number: int
    req: int


class Answers:
    """See the module's docstring."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kept: dict[bytes, dict[int, bool]] = {}

    def restore(self, answers: dict[bytes, dict[int, bytes]]) -> None:
        """Those that an earlier control store has written down, by node and question."""
        self._kept = {node_id: dict.fromkeys(kept, True) for node_id, kept in answers.items()}

    def keep(self, node_id: bytes, heard: Heard, answer: Any) -> None:
        """A message has changed something: note that it was heard, and the answer, if it is a question."""
        record = HeardRecord(heard.session, heard.number)
        self._journal.write(HEARD, node_id, _encode(record))
        if heard.req:
            self._kept.setdefault(node_id, {})[heard.req] = True
            self._journal.write(ANSWERS, key_of_answer(node_id, heard.req), _encode(answer))

    def forget(self, node_id: bytes, reqs: Iterable[int], before: int) -> list[int]:
        """A node has the answers to these questions, and to all before one. Returns those that were kept."""
        kept = self._kept.get(node_id, {})
        # Acknowledgements name them; only who comes back has some that are older, and looks at all.
        older = [req for req in kept if req < before] if before else []
        taken = [req for req in [*older, *reqs] if kept.pop(req, False)]
        for req in taken:
            self._journal.write_with_next(ANSWERS, key_of_answer(node_id, req), None)
        return taken

    def on_node_down(self, node_id: bytes) -> None:
        """A node is dead: it asks nothing again."""
        self._journal.write(HEARD, node_id, None)
        for req in self._kept.pop(node_id, {}):
            self._journal.write(ANSWERS, key_of_answer(node_id, req), None)
