"""The control store's tables in its storage: their names and keys, and how a store is made from them again.

| table | key | value |
|---|---|---|
| `actors` | actor id | `ActorRecord`: the state of a living actor, or why a dead one died |
| `actor_specs` | actor id | `ActorSpec` of a living actor |
| `forgotten_actors` | the part of an actor id that names its creator | id of the last actor whose death is remembered no more |
| `keys` | MessagePack of [namespace, key] | the value |
| `jobs` | job id | `Job` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from shoal.control.storage import StorageError, Tables
from shoal.messages.node import ActorChange, ActorSpec, Job
from shoal.messages.records import ActorRecord, LivingActor

ACTORS: Final = "actors"
SPECS: Final = "actor_specs"
FORGOTTEN: Final = "forgotten_actors"
KEYS: Final = "keys"
JOBS: Final = "jobs"

_encode: Final = msgspec.msgpack.Encoder().encode


def key_of(namespace: str, key: bytes) -> bytes:
    """How a key of a namespace is written in `KEYS`."""
    return _encode((namespace, key))


class Restored(NamedTuple):
    """What a control store begins with."""

    keys: dict[str, dict[bytes, bytes]]
    jobs: dict[bytes, Job]
    living: list[tuple[ActorSpec, LivingActor]]
    dead: list[ActorChange]
    forgotten: dict[bytes, bytes]
    placed_on: dict[bytes, bytes]
    """By actor, the node that its present life was sent to."""


def restored_from(tables: Tables) -> Restored:
    """What a control store begins with that finds these tables.

    Raises:
        StorageError: a record cannot be read.
    """
    restored = Restored({}, {}, [], [], tables.get(FORGOTTEN, {}), {})
    if not tables:
        # So most heads start, and they should start at once: making decoders takes longer than all else here.
        return restored
    decode_key = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
    decode_job = msgspec.msgpack.Decoder(Job).decode
    decode_spec = msgspec.msgpack.Decoder(ActorSpec).decode
    decode_record = msgspec.msgpack.Decoder(ActorRecord).decode
    for key, value in tables.get(KEYS, {}).items():
        namespace, name = _decoded(decode_key, KEYS, key, key)
        restored.keys.setdefault(namespace, {})[name] = value
    for key, value in tables.get(JOBS, {}).items():
        restored.jobs[key] = _decoded(decode_job, JOBS, key, value)
    specs = tables.get(SPECS, {})
    for key, value in tables.get(ACTORS, {}).items():
        record = _decoded(decode_record, ACTORS, key, value)
        if isinstance(record, LivingActor):
            # Both were one commit: where one is, the other is.
            spec = _decoded(decode_spec, SPECS, key, specs.get(key, b""))
            restored.living.append((spec, record))
            restored.placed_on[key] = record.node_id
        else:
            restored.dead.append(record.change)
    return restored


def _decoded(decode: Callable[[bytes], Any], table: str, key: bytes, value: bytes) -> Any:
    try:
        return decode(value)
    except msgspec.MsgspecError as error:
        raise StorageError(
            f"the storage holds a record that this version of shoal cannot read (table {table!r}, key {key.hex()}): {error}. "
            "Start the version that wrote it, or use another storage"
        ) from error
