"""Amounts of resources as users write them, checked and in the units that messages carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shoal.core.resources import Amounts
from shoal.messages.node import UNIT


def amount_of(option: str, value: Any) -> int:
    """An amount as users write it, in units.

    Raises:
        TypeError, ValueError: it is none; `option` names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{option} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{option} must be 0 or more, not {value!r}")
    units = round(value * UNIT)
    if value and not units:
        raise ValueError(f"{option}={value!r} is too small: amounts have a precision of 0.0001")
    if value > 1 and option in {"num_gpus", "GPU"} and value != int(value):
        raise ValueError(f"{option}={value!r}: above 1, GPUs are assigned whole; use an integer")
    return units


def resource_amounts(bundle: Mapping[str, Any], what: str) -> Amounts:
    """A dict of resources to amounts, sorted by name; what is 0 is left out.

    Raises:
        TypeError, ValueError: a name is no string, or an amount is none; `what` names the dict.
    """
    amounts = []
    for name, value in bundle.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{what}: {name!r} is no name of a resource, such as 'CPU' or 'GPU'")
        try:
            amounts.append((name, amount_of(name, value)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what}: {error}") from None
    return tuple(sorted((name, amount) for name, amount in amounts if amount))
