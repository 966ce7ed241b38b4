"""A node, as a process, that asks for one value so many times, stops before it reads an answer, and says at the end what it got.

Usage: python -m tests.contract.asker PORT QUESTIONS
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from shoal.control.link import ControlError
from shoal.messages.control import GetKey, PutKey
from tests.contract.members import QUICK, Node, until


async def ask(port: int, questions: int) -> None:
    node = Node(9, port, config=QUICK)
    link = node.link
    await link.join()
    connection = link._connection
    assert connection is not None
    assert connection._transport is not None
    connection._transport.pause_reading()
    answers = [link.call(GetKey("ns", b"large")) for _ in range(questions)]
    changes = [link.call(PutKey("ns", b"%d" % n, b"v", False)) for n in range(5)]
    await until(
        lambda: (
            link._outgoing.unacknowledged == len(answers) + len(changes)
            and not connection._out
            and connection.pending_bytes == 0
        )
    )
    os.kill(os.getpid(), signal.SIGSTOP)
    connection._transport.resume_reading()
    got = await asyncio.gather(*answers, return_exceptions=True)
    refused = [str(each) for each in got if isinstance(each, ControlError)]
    assert all("of answers wait for this node already" in text for text in refused)
    assert len({each for each in got if isinstance(each, bytes)}) == 1
    assert await asyncio.gather(*changes) == [True] * 5
    # And now there is room again.
    assert len(await link.call(GetKey("ns", b"large"))) > 0
    print(len(got) - len(refused), len(refused), flush=True)
    link.close()


if __name__ == "__main__":
    asyncio.run(ask(int(sys.argv[1]), int(sys.argv[2])))
