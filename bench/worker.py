"""The measured process: opens one session of one peer and samples the rows it is told to.

    python -m bench.worker --peer ray --rows task-sync,task-in-flight

Runs in the peer's own interpreter, hence with the standard library and the peer (and numpy in
the rows that move arrays) and nothing else.  Stops at the first row that fails, because the
session may be sick; the launcher starts another process for the rows that are left.  SIGUSR1
writes the stacks of all threads to standard error: the launcher sends it to a row that is late.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import signal
import socket
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from bench.link import Link, PrintedLink
from bench.measure import Fresh, Plan, Reading, Samples
from bench.peers import PEERS, Peer, Stopwatch
from bench.rows import BY_NAME, Row


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    peer = PEERS[options.peer].with_init(json.loads(options.init))
    rows = [BY_NAME[name] for name in options.rows.split(",")]
    plan = Plan.from_json(options.plan) if options.plan else Plan()
    link = PrintedLink() if options.link is None else Link(socket.socket(fileno=options.link))
    if any(isinstance(row.kind_for(peer.name), Fresh) for row in rows):
        return _measure_fresh(peer, rows, link)
    return _measure_in_session(peer, rows, plan, link)


def _measure_fresh(peer: Peer, rows: list[Row], link: Link | PrintedLink) -> int:
    if len(rows) != 1:
        raise ValueError(f"a row that times `init` needs a process of its own, not {len(rows)}")
    kind = rows[0].kind_for(peer.name)
    assert isinstance(kind, Fresh)
    link.send({"event": "begin", "row": rows[0].name})
    try:
        samples = kind.read(peer)
    except Exception:  # noqa: BLE001 - whatever the peer raises is this row's result
        link.send(_failure(rows[0]))
        link.send({"event": "closed"})
        return 1
    link.send({"event": "started", **_about(peer)})
    link.send(_measured(rows[0], samples))
    link.send({"event": "closed"})
    return 0


def _measure_in_session(peer: Peer, rows: list[Row], plan: Plan, link: Link | PrintedLink) -> int:
    opened = peer.session(rows[0].nodes)
    session = opened.__enter__()
    link.send({"event": "started", **_about(peer)})
    try:
        for row in rows:
            link.send({"event": "begin", "row": row.name})
            try:
                samples = _sample(row, peer, session, plan, link)
            except Exception:  # noqa: BLE001 - whatever the peer raises is this row's result
                link.send(_failure(row))
                return 1
            link.send(_measured(row, samples))
    finally:
        watch = Stopwatch()
        opened.__exit__(None, None, None)
        link.send({"event": "closed", "shutdown_s": watch.lap()})
    return 0


def _sample(row: Row, peer: Peer, session: Any, plan: Plan, link: Link | PrintedLink) -> Samples:
    def census() -> Mapping[str, Any]:
        link.send({"event": "census"})
        answer = link.receive()
        assert answer is not None  # without a timeout there is an answer or an EOFError
        return answer

    kind = row.kind_for(peer.name)
    if isinstance(kind, Reading):
        return kind.read(session, census, plan)
    if kind is None or isinstance(kind, Fresh):
        raise ValueError(f"row {row.name!r} is not measured inside a session of {peer.name}")
    return kind.sample(session, plan)


def _measured(row: Row, samples: Samples) -> dict[str, Any]:
    return {
        "event": "measured",
        "row": row.name,
        "values": samples.values,
        "beside": samples.beside,
    }


def _failure(row: Row) -> dict[str, Any]:
    return {"event": "failed", "row": row.name, "error": traceback.format_exc()}


def _about(peer: Peer) -> dict[str, str]:
    return {"version": peer.version(), "python": platform.python_version()}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--rows", required=True, help="names, separated by commas")
    parser.add_argument("--plan", help="sampling times as JSON; the defaults of measure.Plan")
    parser.add_argument("--init", default="{}", help="more options of `init`, as JSON")
    parser.add_argument("--link", type=int, help="descriptor of the socket to the launcher")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
