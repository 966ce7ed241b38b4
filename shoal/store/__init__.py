"""The process-local half of the object store: bytes of objects in shared memory.

- `Arena`: where one process makes objects; `Reader`: how any process looks at those of others;
- `shm_directory`, `sweep`, `remove_session`, `default_capacity_bytes`: for the node daemon, which owns the directory.

No sockets and no threads here: who needs which object, and who has how much quota, travels in messages of the runtime.
Reading guide: `layout` (files and numbers), `mapping` (how the end of a view is noticed), `locks` (who looks at what),
`extents` (the pure allocator), `segment`, `idle` (memory that no object uses), `arena`, `reader`, `forking`, `copying`, `session`.
"""

from shoal.messages.values import Location
from shoal.store.accounts import ArenaBlocks, ArenaStats, QuotaExhausted
from shoal.store.arena import Arena, Block
from shoal.store.copying import copy_into
from shoal.store.reader import Reader, ReaderStats
from shoal.store.session import (
    default_capacity_bytes,
    is_in_memory,
    private_directory,
    remove_session,
    shm_directory,
    sweep,
)

__all__ = [
    "Arena",
    "ArenaBlocks",
    "ArenaStats",
    "Block",
    "Location",
    "QuotaExhausted",
    "Reader",
    "ReaderStats",
    "copy_into",
    "default_capacity_bytes",
    "is_in_memory",
    "private_directory",
    "remove_session",
    "shm_directory",
    "sweep",
]
