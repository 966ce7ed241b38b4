"""Another process of the session, driven line by line: `python -m tests.store.peer DIRECTORY CREATOR QUOTA [SPILL FOLDER]`.

Each line is a Python list, the command and its arguments; each answer is the `repr` of the result. Arrays stay in the
process, by name, until told to drop them.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np

from shoal.store import Arena, Location, Reader, copy_into

ROOT = Path(__file__).parents[2]


class Peer:
    """The handle on such a process. Used as a context, it ends the process."""

    def __init__(
        self, directory: Path, creator: str, quota_bytes: int = 0, *, spill: Path | None = None
    ) -> None:
        setup = [
            str(directory),
            creator,
            str(quota_bytes),
            *([] if spill is None else [str(spill)]),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.peer", *setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __call__(self, *command: Any) -> Any:
        self.send(*command)
        return self.receive()

    def send(self, *command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(
            repr([tuple(x) if isinstance(x, list) else x for x in command]) + "\n"
        )
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        return ast.literal_eval(self.process.stdout.readline())

    def put(self, size: int, seed: int = 0) -> Location:
        return Location(*self("put", size, seed))

    def free(self, location: Location) -> None:
        self("free", fields(location))

    def take(self, name: str, location: Location) -> str:
        """Keep an array of the object; its digest."""
        return str(self("take", name, fields(location)))


def fields(location: Location) -> tuple[str, int, int, int]:
    return location.segment, location.offset, location.size, location.serial


def content(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def digest(data: Any) -> str:
    return hashlib.blake2b(data).hexdigest()


class Commands:
    """What the process does."""

    def __init__(self, directory: Path, creator: str, quota_bytes: int, spill: Path | None) -> None:
        self.arena = Arena(directory, creator, quota_bytes, spill_directory=spill)
        self.reader = Reader(directory, spill)
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.children: list[int] = []

    def put(self, size: int, seed: int) -> tuple[str, int, int, int]:
        block = self.arena.create(size)
        copy_into(block.buffer, memoryview(content(size, seed)))
        return fields(block.location)

    def free(self, location: tuple[str, int, int, int]) -> None:
        self.arena.free(Location(*location))

    def take(self, name: str, location: tuple[str, int, int, int]) -> str:
        self.arrays[name] = np.frombuffer(self.reader.view(Location(*location)), dtype=np.uint8)
        return digest(self.arrays[name])

    def spill(self, wanted: int) -> int:
        return self.arena.spill(wanted).freed

    def look(self, name: str) -> str:
        return digest(self.arrays[name])

    def drop(self, name: str) -> None:
        del self.arrays[name]

    def fork_and_drop(self) -> bool:
        """Whether a child can drop all that it inherited, without an error in a finalizer."""
        child = os.fork()
        if child == 0:
            failed: list[object] = []
            sys.unraisablehook = failed.append
            self.arrays.clear()
            self.reader.stats()
            os._exit(len(failed))
        return os.waitpid(child, 0)[1] == 0

    def fork_and_stay(self) -> int:
        """A child that lives on with all that it inherited, until its parent's input ends."""
        child = os.fork()
        if child == 0:
            sys.stdin.read()
            os._exit(0)
        return child

    def fork_and_create(self) -> str:
        """What a forked child is told when it creates with its parent's arena."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                self.arena.create(1000)
            except Exception as error:  # noqa: BLE001 - it is told to the parent
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as told:
            return told.read()

    def quarantined(self) -> int:
        self.arena.blocks()  # looks at all of them again
        return self.arena.stats().quarantined_blocks


def main() -> None:
    directory, creator, quota_bytes, *spill = sys.argv[1:]
    commands = Commands(Path(directory), creator, int(quota_bytes), Path(*spill) if spill else None)
    for line in sys.stdin:
        name, *arguments = ast.literal_eval(line)
        print(repr(getattr(commands, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
