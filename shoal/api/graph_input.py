"""What `execute` of a graph was given, and how its parts are found (see `shoal.api.dag`)."""

from __future__ import annotations

from typing import Any


class GraphInput:
    """The arguments of one `execute`."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs

    def _single(self) -> bool:
        return len(self._args) == 1 and not self._kwargs

    def whole(self) -> Any:
        """The only value.

        Raises:
            TypeError: there are several, or none.
        """
        if not self._single():
            raise TypeError(
                f"the graph takes its input as one value; execute() was given {self._given()}. For several, use inp[0] "
                "or inp.name where the graph is bound"
            )
        return self._args[0]

    def part(self, key: int | str, attribute: bool) -> Any:
        """The argument at a position or of a name; of a single value its item, or its attribute.

        Raises:
            TypeError: there is no such argument.
        """
        if self._single():
            value = self._args[0]
            if attribute:
                return getattr(value, str(key))
            return value[key]
        found: Any = self._kwargs if isinstance(key, str) else self._args
        try:
            return found[key]
        except LookupError:
            raise TypeError(
                f"the graph takes input {key!r}; execute() was given {self._given()}"
            ) from None

    def _given(self) -> str:
        names = [f"{len(self._args)} by position", *map(repr, self._kwargs)]
        return "nothing" if not self._args and not self._kwargs else ", ".join(names)
