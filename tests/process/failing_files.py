"""A file system for `fsspec` that is this machine's, and fails when it is told to."""

from __future__ import annotations

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FailingFiles(LocalFileSystem):
    """See the module's docstring.

    Attributes:
        broken: Whether nothing can be written, read or removed.
        half: How many bytes can be written of a file before it breaks.
    """

    protocol = "failing"
    cachable = False
    broken: ClassVar[bool] = False
    half: ClassVar[int] = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("failing://"))

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        self._check()
        file = super()._open(path, mode, **more)
        if "w" in mode and type(self).half:
            write, left = file.write, [type(self).half]

            def some(data: bytes) -> int:
                left[0] -= len(data)
                if left[0] < 0:
                    raise RuntimeError("the line went dead")
                return write(data)  # type: ignore[no-any-return]  # fsspec has no types

            file.write = some
        return file

    def rm_file(self, path: str) -> None:
        self._check()
        super().rm_file(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._check()
        super().makedirs(path, exist_ok=exist_ok)

    def _check(self) -> None:
        if type(self).broken:
            raise ConnectionError("nobody answers")


def register() -> None:
    """Make it known as `failing://`."""
    fsspec.register_implementation("failing", FailingFiles, clobber=True)
