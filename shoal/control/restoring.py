"""The control store's tables in its storage: their names and keys, and how a store is made from them again.

| table | key | value |
|---|---|---|
| `actors` | actor id | `ActorRecord`: the state of a living actor, or why a dead one died |
| `actor_specs` | actor id | `ActorSpec` of a living actor |
| `forgotten_actors` | the part of an actor id that names its creator | id of the last actor whose death is remembered no more |
| `keys` | MessagePack of [namespace, key] | the value |
| `jobs` | job id | `JobRecord` |
| `nodes` | node id | `NodeRecord` of a node that is in the cluster |
| `heard` | node id | `HeardRecord`: what a node need not say again |
| `answers` | node id and number of the question | the answer that the node may not have, to a question that changed something |
| `groups` | placement group id | `GroupRecord`, unless it was removed |
| `cluster` | `id` | what this cluster is, for as long as its storage lives |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from shoal.control.storage import StorageError, Tables
from shoal.ids import ID_SIZE
from shoal.messages.node import ActorChange, ActorSpec
from shoal.messages.placement import GroupRecord
from shoal.messages.records import (
    ActorRecord,
    HeardRecord,
    JobRecord,
    LivingActor,
    NodeRecord,
)

ACTORS: Final = "actors"
SPECS: Final = "actor_specs"
FORGOTTEN: Final = "forgotten_actors"
KEYS: Final = "keys"
JOBS: Final = "jobs"
NODES: Final = "nodes"
HEARD: Final = "heard"
ANSWERS: Final = "answers"
GROUPS: Final = "groups"
CLUSTER: Final = "cluster"
CLUSTER_ID: Final = b"id"

_encode: Final = msgspec.msgpack.Encoder().encode


def key_of(namespace: str, key: bytes) -> bytes:
    """How a key of a namespace is written in `KEYS`."""
    return _encode((namespace, key))


def key_of_answer(node_id: bytes, req: int) -> bytes:
    """How the answer to a question of a node is written in `ANSWERS`."""
    return node_id + req.to_bytes(8, "big")


class Restored(NamedTuple):
    """What a control store begins with."""

    keys: dict[str, dict[bytes, bytes]]
    jobs: dict[bytes, JobRecord]
    living: list[tuple[ActorSpec, LivingActor]]
    dead: list[ActorChange]
    forgotten: dict[bytes, bytes]
    placed_on: dict[bytes, bytes]
    """By actor, the node that its present life was sent to."""
    nodes: dict[bytes, NodeRecord]
    heard: dict[bytes, HeardRecord]
    answers: dict[bytes, dict[int, bytes]]
    """By node and number of the question."""
    cluster_id: bytes
    groups: list[GroupRecord]

    def of_nodes(self) -> Restored:
        """The part that is needed for as long as nodes of an earlier control store live. The rest is with whoever changes it."""
        return self._replace(
            keys={}, jobs={}, living=[], dead=[], forgotten={}, placed_on={}, groups=[]
        )

    def forget(self, node_id: bytes) -> NodeRecord | None:
        """A node is dead; what it was."""
        self.heard.pop(node_id, None)
        self.answers.pop(node_id, None)
        return self.nodes.pop(node_id, None)


def restored_from(tables: Tables) -> Restored:
    """What a control store begins with that finds these tables.

    Raises:
        StorageError: a record cannot be read.
    """
    cluster_id = tables.get(CLUSTER, {}).get(CLUSTER_ID, b"")
    forgotten = tables.get(FORGOTTEN, {})
    restored = Restored({}, {}, [], [], forgotten, {}, {}, {}, {}, cluster_id, [])
    if not tables:
        # So most heads start, and they should start at once: making decoders takes longer than all else here.
        return restored
    decode_key = msgspec.msgpack.Decoder(tuple[str, bytes]).decode
    decode_job = msgspec.msgpack.Decoder(JobRecord).decode
    decode_spec = msgspec.msgpack.Decoder(ActorSpec).decode
    decode_record = msgspec.msgpack.Decoder(ActorRecord).decode
    for key, value in tables.get(KEYS, {}).items():
        namespace, name = _decoded(decode_key, KEYS, key, key)
        restored.keys.setdefault(namespace, {})[name] = value
    for key, value in tables.get(JOBS, {}).items():
        restored.jobs[key] = _decoded(decode_job, JOBS, key, value)
    decode_node = msgspec.msgpack.Decoder(NodeRecord).decode
    for key, value in tables.get(NODES, {}).items():
        restored.nodes[key] = _decoded(decode_node, NODES, key, value)
    decode_heard = msgspec.msgpack.Decoder(HeardRecord).decode
    for key, value in tables.get(HEARD, {}).items():
        restored.heard[key] = _decoded(decode_heard, HEARD, key, value)
    for key, value in tables.get(ANSWERS, {}).items():
        node_id, req = key[:ID_SIZE], int.from_bytes(key[ID_SIZE:], "big")
        restored.answers.setdefault(node_id, {})[req] = value
    decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
    # In the order of their ids, which is that in which each process made them.
    for key, value in sorted(tables.get(GROUPS, {}).items()):
        restored.groups.append(_decoded(decode_group, GROUPS, key, value))
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
