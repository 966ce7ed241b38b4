"""What workers print: on its way to the driver, and in its files."""

from __future__ import annotations

import os
from typing import Any

from shoal.messages.node import LeaseReturn, Log, PeerGone, Watch
from tests.process.fake_worker import tell
from tests.process.node_client import NodeClient
from tests.process.node_sessions import NodeSession, node_session, wait_for


def printed(driver: NodeClient, lines: int) -> list[tuple[str, int, str]]:
    """(source, stream, line) of the next so many lines."""
    found: list[tuple[str, int, str]] = []
    while len(found) < lines:
        log = driver.expect(Log)
        found += [(log.source, log.stream, line) for line in log.lines]
    return found


def log_file(session: NodeSession, pid: int, stream: str) -> str:
    with open(f"{session.session.directory}/logs/worker-{pid}.{stream}", encoding="utf-8") as file:
        return file.read()


def write(lease: Any, code: str) -> None:
    tell(lease.address, code)


def test_lines_come_in_order_by_stream_and_source() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        write(lease, r"print('one'); print('\x1eshoal:f'); print('two\nthree')")
        write(lease, r"print('half', end=''); print('\x1eshoal:g'); print('whole')")
        assert printed(driver, 5) == [
            ("", 1, "one"),
            ("f", 1, "two"),
            ("f", 1, "three"),
            ("f", 1, "half"),
            ("g", 1, "whole"),
        ]
        write(lease, "print('bad', file=sys.stderr)")
        assert printed(driver, 1) == [("", 2, "bad")]
        assert log_file(session, lease.pid, "out") == "one\ntwo\nthree\nhalf\nwhole\n"
        assert log_file(session, lease.pid, "err") == "bad\n"


def test_a_driver_that_wants_no_lines_gets_none() -> None:
    with node_session() as session:
        driver = session.register(log_to_driver=False)
        lease = session.lease(driver)
        write(lease, "print('quiet')")
        driver.expect_silence(Log, 0.1)
        assert log_file(session, lease.pid, "out") == "quiet\n"


def test_the_last_lines_of_a_crash_come_before_its_notice() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        driver.send(Watch(lease.address))
        tell(lease.address, "os.write(2, b'dying' * 3); os.abort()", wait=False)
        driver.expect(PeerGone)
        assert [m.lines for m in driver.heard if isinstance(m, Log)] == [["dyingdyingdying"]]


def test_what_is_not_text_and_what_has_no_end_is_cut_and_shown() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        write(lease, r"os.write(1, b'\xff\xfe\n' + b'x' * 200000 + b'\n')")
        first, *rest = printed(driver, 4)
        assert first == ("", 1, "\ufffd\ufffd")
        assert "".join(line for _, _, line in rest) == "x" * 200_000
        assert max(len(line) for _, _, line in rest) <= 128 * 1024


def test_files_are_rotated() -> None:
    with node_session(settings={"log_rotate_bytes": 1000}) as session:
        driver = session.register(log_to_driver=False)
        lease = session.lease(driver)
        for _ in range(30):
            write(lease, "print('y' * 99)")
        path = f"{session.session.directory}/logs/worker-{lease.pid}.out"
        wait_for(lambda: os.path.exists(f"{path}.1"))
        assert os.path.getsize(path) <= 1000
        assert os.path.getsize(f"{path}.1") <= 1000


def test_a_driver_that_does_not_read_costs_bounded_memory_and_hears_what_it_missed() -> None:
    with node_session() as session:
        driver = session.register()
        lease = session.lease(driver)
        # 40 MB of lines while nobody reads: ten times what may wait.
        write(lease, "line = b'z' * 999 + b'\\n'; [os.write(1, line * 100) for _ in range(400)]")
        missed = driver.expect(Log, lambda log: log.source == "shoal" or _poke(lease), 20)
        assert "lines of workers are not shown here" in missed.lines[0]
        driver.send(LeaseReturn(lease.lease_id))


def _poke(lease: Any) -> bool:
    # The notice comes with the next line that can be forwarded.
    tell(lease.address, "print('more')")
    return False
