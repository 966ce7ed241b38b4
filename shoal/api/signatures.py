"""What a function or method takes: checked when a call is made, not when it runs in another process.

Signatures travel in the description of an actor class, so that every holder of a handle can check its calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Self

import msgspec

Parameter = inspect.Parameter
_KINDS = {
    kind.value: kind
    for kind in (
        Parameter.POSITIONAL_ONLY,
        Parameter.POSITIONAL_OR_KEYWORD,
        Parameter.VAR_POSITIONAL,
        Parameter.KEYWORD_ONLY,
        Parameter.VAR_KEYWORD,
    )
}


class Row(msgspec.Struct, array_like=True, frozen=True):
    """One parameter: its name, its kind (as `inspect` numbers them), and whether it has a default."""

    name: str
    kind: int
    has_default: bool


class Signature:
    """Checks arguments; merely by counting positions where that is enough."""

    __slots__ = ("_most", "_name", "_required", "_signature", "rows")

    def __init__(self, rows: list[Row] | None, name: str) -> None:
        """The signature of the parameters `rows`; None checks nothing."""
        self.rows = rows
        self._name = name
        self._signature: inspect.Signature | None = None
        positional = [
            row for row in rows or () if row.kind <= Parameter.POSITIONAL_OR_KEYWORD.value
        ]
        self._required = sum(not row.has_default for row in positional)
        self._most: float = len(positional)
        for row in rows or ():
            if row.kind == Parameter.VAR_POSITIONAL.value:
                self._most = float("inf")
        if any(
            row.kind == Parameter.KEYWORD_ONLY.value and not row.has_default for row in rows or ()
        ):
            # Never satisfied by positions alone: always bind.
            self._most = -1

    @classmethod
    def of(cls, function: Callable[..., Any], name: str, *, skip_self: bool = False) -> Self:
        """The signature of a function, or of a class's `__init__`; of a method without its `self`."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            # Built-in functions may have none: the call itself will tell.
            return cls(None, name)
        if skip_self:
            parameters = parameters[1:]
        return cls([Row(p.name, p.kind.value, p.default is not p.empty) for p in parameters], name)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that the function cannot take.

        Raises:
            TypeError: as calling it would.
        """
        if self.rows is None or (not kwargs and self._required <= len(args) <= self._most):
            return
        signature = self._signature
        if signature is None:
            signature = self._signature = inspect.Signature(
                [
                    Parameter(
                        row.name,
                        _KINDS[row.kind],
                        default=None if row.has_default else Parameter.empty,
                    )
                    for row in self.rows
                ]
            )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
