"""Values to bytes and back, at the cost of pickle and little more.

::

    values.py      serialize, deserialize: the entrance       hooks.py     what the runtime and users registered
    pickler.py     cloudpickle's pickler, made thin           arrays.py    numpy arrays and scalars
    record.py      the result: stream, buffers, references    layout.py    the result in one block of shared memory
    exceptions.py  exceptions as values that always arrive
    explain.py     the text of an error: who, where, why, what to do. Behind it: culprits.py (the search),
                   edges.py (what an object consists of), advice.py (what to do about its type)
    inspection.py  the same search as a question

Everything is a pickle stream of protocol 5 with large buffers beside it. What cannot be imported by the receiver
(code of `__main__`, lambdas, local functions and classes) is sent with its code, by cloudpickle. Unpickling runs
code: bytes must come from peers that hold the session's token, and daemons never unpickle.
"""

from __future__ import annotations

from shoal.serial.exceptions import ExceptionStandIn, dump_exception, load_exception
from shoal.serial.hooks import (
    HOOKS,
    Hooks,
    deregister_serializer,
    register_rebuilder,
    register_ref_type,
    register_serializer,
)
from shoal.serial.layout import CorruptBlockError, copy_into, layout_size, read_layout, write_layout
from shoal.serial.record import Serialized
from shoal.serial.values import (
    deserialize,
    deserialize_args,
    pickle_function,
    serialize,
    serialize_args,
    serialize_function,
)

__all__ = [
    "serialize",
    "serialize_args",
    "serialize_function",
    "pickle_function",
    "deserialize",
    "deserialize_args",
    "Serialized",
    "dump_exception",
    "load_exception",
    "ExceptionStandIn",
    "layout_size",
    "write_layout",
    "read_layout",
    "copy_into",
    "CorruptBlockError",
    "Hooks",
    "HOOKS",
    "register_ref_type",
    "register_rebuilder",
    "register_serializer",
    "deregister_serializer",
]
