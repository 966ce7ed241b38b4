"""A control store as the process that it is, started and killed by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from shoal.config import Config
from shoal.control.server import listen
from shoal.messages.boot import BootAnswer, ControlBoot, Ready
from shoal.wire.framing import HEADER_BYTES, encode_frame
from tests.contract.members import QUICK, TOKEN

PATIENCE_S = 60.0


class ControlProcess:
    """One process. `answer` is what it said when it was started."""

    def __init__(
        self,
        folder: Path,
        storage: str,
        *,
        port: int = 0,
        config: Config = QUICK,
        name: str = "test",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        listening = listen(port=port)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self.port = int(listening.getsockname()[1])
            boot = ControlBoot(
                token=TOKEN,
                cluster_name=name,
                directory=str(folder),
                lock_fd=lock,
                listen_fd=listening.fileno(),
                place=f"127.0.0.1:{self.port}",
                storage=storage,
                starter_pid=os.getpid(),
                config=config,
            )
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "shoal.control"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=(lock, listening.fileno()),
                )
        finally:
            listening.close()
            os.close(lock)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(encode_frame(msgspec.msgpack.encode(boot)))
        self.process.stdin.flush()

    def read_answer(self) -> BootAnswer:
        """Wait for what it says of its start."""
        assert self.process.stdout is not None
        size = int.from_bytes(self.process.stdout.read(HEADER_BYTES), "little")
        data = self.process.stdout.read(size)
        return msgspec.msgpack.decode(data, type=BootAnswer)  # type: ignore[no-any-return]  # msgspec cannot tell of unions

    def ready(self) -> ControlProcess:
        """Wait until it serves."""
        answer = self.read_answer()
        assert isinstance(answer, Ready), answer
        assert answer.pid == self.process.pid
        return self

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._finish()

    def end(self, how: int = signal.SIGTERM) -> int:
        """In good order; its exit code."""
        self.process.send_signal(how)
        return self._finish()

    def wait(self) -> int:
        """Wait for it to end by itself; its exit code."""
        return self._finish()

    def _finish(self) -> int:
        code = self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def killed_at_the_end() -> Iterator[list[ControlProcess]]:
    """Whatever is put into the list does not outlive the block."""
    processes: list[ControlProcess] = []
    try:
        yield processes
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.kill()
