"""numpy arrays and scalars, the everyday cargo, in a quarter of numpy's own pickling time.

Owns reducers for plain `ndarray`s and for scalars of the ordinary types. numpy's own work, but pickle a dtype
object with every value and, for arrays that are not contiguous, send a copy inside the stream, which the reader
copies once more. Here a dtype is a few characters, and an array of any stride arrives as a view of an aligned
buffer.

Arrays arrive **read-only at any size**. Large ones are views of shared memory and have to be; if small ones were
not, a program that changes its argument in place would work in the test and fail with real data.

numpy is not needed and never imported to send; the reducers join the hooks when the process has it. What is not plain
(subclasses, structured and object dtypes, dtypes with metadata) is left to numpy's own reducers.
"""

from __future__ import annotations

import sys
from functools import cache
from pickle import PickleBuffer
from typing import Any

from shoal.serial.hooks import Hooks, Reduced, register_rebuilder

OUT_OF_BAND_MIN_BYTES = 4096
"""Smaller buffers are cheaper inside the stream: a copy of them costs less than a place in a message or block."""

# b: bool, iu: integers, f: floats, c: complex, S: bytes, U: text, mM: times
_PLAIN_KINDS = frozenset("biufcSUmM")
# dtype character -> (numpy's one instance of that dtype, how it is written in the stream)
_known_dtypes: dict[str, tuple[Any, str]] = {}
_ndarray: Any = None


def learn_numpy(hooks: Hooks) -> None:
    """Add the reducers to `hooks`, if this process has numpy loaded."""
    numpy: Any = sys.modules.get("numpy")
    if getattr(numpy, "ndarray", None) is None or getattr(numpy, "bool_", None) is None:
        return  # not imported, or another thread is halfway through importing it
    _load_numpy()
    reducers: dict[type, Any] = {numpy.ndarray: _reduce_array}
    for dtype, _ in _known_dtypes.values():
        if (
            dtype.kind in "biufc" and dtype.char not in "gG"
        ):  # long double has no exact Python value
            reducers[dtype.type] = _scalar_reducer(dtype.str)
    hooks.add_reducers(reducers)
    hooks.numpy_known = True


def _load_numpy() -> None:
    global _ndarray  # noqa: PLW0603 - an import that must wait for its first use
    import numpy

    for character in "?bBhHiIlLqQefdgFDG":
        dtype = numpy.dtype(character)
        _known_dtypes[character] = dtype, dtype.str
    _ndarray = numpy.ndarray


def _reduce_array(array: Any) -> Reduced:
    dtype = array.dtype
    known = _known_dtypes.get(dtype.char)
    if known is not None and known[0] is dtype:
        code = known[1]
    elif (
        dtype.kind in _PLAIN_KINDS
        and dtype.metadata is None
        and dtype.itemsize  # 'S0' has no bytes to view
    ):
        code = dtype.str
    else:
        reduced: Reduced = array.__reduce_ex__(5)
        return reduced
    flags = array.flags
    if array.nbytes < OUT_OF_BAND_MIN_BYTES:
        if flags.fnc:  # Fortran order and not C order
            return rebuild_array, (array.tobytes("F"), code, array.shape, "F")
        return rebuild_array, (array.tobytes(), code, array.shape)
    if not flags.forc:
        array = array.copy("C")
    if dtype.kind in "mM":  # the buffer protocol does not know times
        array = array.view("i8")
    if flags.fnc:
        return rebuild_array, (PickleBuffer(array), code, array.shape, "F")
    return rebuild_array, (PickleBuffer(array), code, array.shape)


def rebuild_array(buffer: Any, dtype: str, shape: tuple[int, ...], order: str = "C") -> Any:
    """The array whose bytes are in `buffer`: a view of it, read-only as `buffer` is."""
    if _ndarray is None:
        _load_numpy()
    if type(buffer) is bytearray:  # what pickle makes of a writable buffer inside the stream
        buffer = memoryview(buffer).toreadonly()
    return _ndarray(shape, dtype, buffer, 0, None, order)


def _scalar_reducer(code: str) -> Any:
    def reduce(scalar: Any) -> Reduced:
        return rebuild_scalar, (code, scalar.item())

    return reduce


def rebuild_scalar(code: str, value: Any) -> Any:
    """The numpy scalar of that dtype and value."""
    return _scalar_type(code)(value)


@cache  # bounded by the number of scalar types
def _scalar_type(code: str) -> Any:
    import numpy

    return numpy.dtype(code).type


register_rebuilder(rebuild_array, 0)
register_rebuilder(rebuild_scalar, 1)
