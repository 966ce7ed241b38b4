"""Amounts as people read them."""

from __future__ import annotations

from typing import Final

_PREFIXES: Final = ("", "Ki", "Mi", "Gi", "Ti")


def bytes_text(amount: float) -> str:
    """Bytes with a binary prefix: 1.5 GiB."""
    for prefix in _PREFIXES:
        if abs(amount) < 1024 or prefix == _PREFIXES[-1]:
            break
        amount /= 1024
    return f"{amount:.4g} {prefix}B"
