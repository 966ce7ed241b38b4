"""The remote target for spilled segments: a folder of the session's own at a URL, through `fsspec`, which is loaded on first use.

`python -m shoal.node.remote_target URL FOLDER` removes such a folder: whoever cleans up after a session has that run in a process of its
own (`shoal.wire.session`), since libraries of others take memory and threads that a zygote, or a driver that starts, must not have.

Guarantees: whatever a library of others raises becomes a `TargetError` with its words. A transfer that fails or is stopped leaves
nothing under its name, unless the target cannot be reached even to remove it: then whoever clears the folder does.

All of it blocks, for as long as the target likes; called by one thread at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger("shoal.node")

_CHUNK: Final = 1 << 20


class TargetError(Exception):
    """The target cannot be reached, or does not do what it should; says what it has said."""


class Target:
    """See the module's docstring.

    Args:
        url: Where: anything that `fsspec` has a file system for.
        folder: The session's own there.
        is_stopped: Asked now and then in the middle of a transfer.
    """

    def __init__(self, url: str, folder: str, is_stopped: Callable[[], bool] = bool) -> None:
        self.url = url
        self._folder = folder
        self._is_stopped = is_stopped
        self._files: Any = None
        self._root = ""

    def put(self, source: Path, name: str) -> None:
        """Copy a file there.

        Raises:
            TargetError: that failed.
            FileNotFoundError: the file is gone.
        """
        with open(source, "rb") as file, self._words():
            files, path = self._open(), self._path(name)
            try:
                with files.open(path, "wb") as sink:
                    while data := file.read(_CHUNK):
                        self._go_on()
                        sink.write(data)
                self._check_size(files, path, os.fstat(file.fileno()).st_size)
            except BaseException:
                self._drop(files, path)
                raise

    def get(self, name: str, place: Path, length: int) -> None:
        """Copy a file of `length` bytes from there. What is zero takes no room.

        Raises:
            TargetError: that failed.
            OSError: the disk here takes no more; nothing is left there.
        """
        place.unlink(missing_ok=True)
        try:
            with open(place, "xb", opener=_private) as file:
                got = 0
                for data in self._read(name):
                    if data.count(0) < len(data):
                        file.seek(got)
                        file.write(data)
                    got += len(data)
                if got != length:
                    raise TargetError(f"{self._path(name)} has {got:,} bytes instead of {length:,}")
                file.truncate(length)
        except BaseException:
            place.unlink(missing_ok=True)
            raise

    def _read(self, name: str) -> Iterator[bytes]:
        with self._words(), self._open().open(self._path(name), "rb") as file:
            while data := file.read(_CHUNK):
                self._go_on()
                yield data

    def remove(self, name: str) -> None:
        """Remove a file there, if it is there.

        Raises:
            TargetError: that failed.
        """
        with self._words():
            files = self._open()
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(self._path(name))

    def clear(self) -> None:
        """Remove the folder and all that is in it, if it is there.

        Raises:
            TargetError: that failed.
        """
        with self._words():
            files = self._open(make=False)
            for last in (False, False, True):
                files.invalidate_cache()
                try:
                    if files.exists(self._root):
                        files.rm(self._root, recursive=True)
                except FileNotFoundError:
                    # Somebody else clears it, too.
                    if last:
                        raise
                else:
                    return

    def _drop(self, files: Any, path: str) -> None:
        try:
            files.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as error:  # noqa: BLE001 - libraries of others raise what they like, and the first error is the one to tell
            _log.debug("%s stays at the target until that is cleared: %s", path, error)

    def _open(self, *, make: bool = True) -> Any:
        if self._files is None:
            from fsspec.core import url_to_fs

            files, root = url_to_fs(self.url)
            self._root = f"{root.rstrip('/')}/{self._folder}"
            if make:
                files.makedirs(self._root, exist_ok=True)
            self._files = files
        return self._files

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _check_size(self, files: Any, path: str, length: int) -> None:
        found = files.size(path)
        if found != length:
            raise TargetError(f"{path} has {found:,} bytes after {length:,} were written")

    def _go_on(self) -> None:
        if self._is_stopped():
            raise TargetError("this node ends")

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except TargetError:
            raise
        except Exception as error:
            what = str(error) or type(error).__name__
            raise TargetError(f"{self.url}: {what} ({type(error).__name__})") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def main() -> None:
    """Remove the folder of a session that is over."""
    url, folder = sys.argv[1:]
    try:
        Target(url, folder).clear()
    except TargetError as error:
        sys.exit(f"what a session has spilled cannot be removed: {error}")


if __name__ == "__main__":
    main()
