"""Labels of nodes, and selectors: conditions on them, as users write them and as they are matched.

Labels are names and values; a selector is written as a dict of conditions, one for each label::

    "a100"         the value is a100              "!a100"           it is not, or there is none
    "in(a,b)"      it is a or b                   "!in(a,b)"        it is neither, or there is none

`LabelTerm` also knows "exists" and "!exists", which the classes `Exists` and `DoesNotExist` of the API stand for.

Pure functions over records of `messages.placement`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from shoal.messages.placement import LabelTerm, Selector

_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_PREFIX: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_LIST: Final = re.compile(r"in\((.*)\)", re.DOTALL)
OPS: Final = frozenset({"in", "!in", "exists", "!exists"})


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise unless these are labels that a node may have.

    Raises:
        ValueError: a name or value that is no label's.
    """
    for key, value in labels.items():
        _check_key(key)
        _check_value(key, value)


def parse_selector(conditions: Mapping[str, str]) -> Selector:
    """A selector as users write it, such as `{"zone": "in(a,b)", "gpu": "!t4"}`.

    Raises:
        ValueError: a condition that is none, or a name or value that no label may have.
    """
    return as_selector(_parse_term(key, text) for key, text in conditions.items())


def as_selector(terms: Iterable[LabelTerm]) -> Selector:
    """Terms in the one order that makes equal selectors equal.

    Raises:
        ValueError: a term that is none.
    """
    terms = list(terms)
    for term in terms:
        if term.op not in OPS:
            raise ValueError(f"{term.op!r} is no condition on a label: {', '.join(sorted(OPS))}")
        _check_key(term.key)
        if bool(term.values) != (term.op in {"in", "!in"}):
            raise ValueError(
                f"the condition {term.op!r} on label {term.key!r} has {term.values!r} as values: "
                'in and !in need some, "exists" and "!exists" take none'
            )
        for value in term.values:
            _check_value(term.key, value)
    return tuple(sorted(set(terms), key=lambda term: (term.key, term.op, term.values)))


def _parse_term(key: str, text: str) -> LabelTerm:
    if not isinstance(text, str):
        raise ValueError(  # noqa: TRY004 - a bad selector is one kind of error, whatever is bad about it
            f"the condition on label {key!r} is {text!r}; it must be a string such as 'a', '!a' or 'in(a,b)'"
        )
    negated = text.startswith("!")
    rest = text.removeprefix("!").strip()
    found = _LIST.fullmatch(rest)
    values = [value.strip() for value in found[1].split(",")] if found else [rest]
    if not all(values):
        raise ValueError(
            f"the condition {text!r} on label {key!r} names no value; write 'a', '!a', 'in(a,b)' or '!in(a,b)'"
        )
    return LabelTerm(key, "!in" if negated else "in", tuple(sorted(set(values))))


def _check_key(key: str) -> None:
    prefix, slash, name = key.rpartition("/") if isinstance(key, str) else ("", "", "")
    if not name or not _VALUE.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)):
        raise ValueError(
            f"{key!r} cannot name a label: up to 63 letters, digits, '-', '_' and '.', beginning and ending "
            "with a letter or digit, and before it perhaps a domain and a slash"
        )


def _check_value(key: str, value: str) -> None:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(
            f"{value!r} cannot be the value of label {key!r}: up to 63 letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )


# --- matching -------------------------------------------------------------------------------------------------------


def matches(labels: Mapping[str, str], selector: Selector) -> bool:
    """Whether a node with these labels meets all conditions."""
    for term in selector:
        value = labels.get(term.key)
        match term.op:
            case "in":
                holds = value in term.values
            case "!in":
                holds = value not in term.values
            case "exists":
                holds = value is not None
            case "!exists":
                holds = value is None
            case _:
                holds = False
        if not holds:
            return False
    return True


def selector_text(selector: Selector) -> str:
    """A selector in words, for explanations: "zone in (a, b) and gpu exists"."""
    return " and ".join(_term_text(term) for term in selector) or "any labels"


def _term_text(term: LabelTerm) -> str:
    values = ", ".join(term.values)
    match term.op:
        case "in":
            return f"{term.key} in ({values})" if len(term.values) > 1 else f"{term.key}={values}"
        case "!in":
            return f"{term.key} not in ({values})"
        case "exists":
            return f"{term.key} set"
    return f"{term.key} not set"
