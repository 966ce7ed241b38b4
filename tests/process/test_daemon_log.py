"""What daemons say is bounded: seen in a real cluster whose nodes are insulted until their logs are full."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from shoal.testing.cluster import Cluster
from tests.api.gates import wait_until


def test_a_full_log_is_kept_as_one_older_one() -> None:
    limit = 4_000
    with Cluster(system_config={"log_rotate_bytes": limit}) as cluster:
        node = cluster.head_node
        log = Path(node.session_dir) / "logs" / "head.err"
        older = log.with_name("head.err.1")
        host, _, port = node.place.rpartition(":")

        def insult() -> bool:
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                # What it has not read makes its end a reset.
                with contextlib.suppress(ConnectionResetError):
                    sock.recv(1)
            return older.exists()

        wait_until(insult, "the log is full")
        last = log.stat().st_ino
        wait_until(lambda: insult() and older.stat().st_ino == last, "it is full again")
        assert sorted(path.name for path in log.parent.glob("head.err*")) == [
            "head.err",
            "head.err.1",
        ]
        assert older.stat().st_size < 2 * limit
        assert (log.stat().st_mode & 0o777, older.stat().st_mode & 0o777) == (0o600, 0o600)
        assert "not shoal's greeting" in older.read_text()
