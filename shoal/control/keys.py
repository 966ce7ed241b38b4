"""Keys and values, by namespace: a table that is too simple to be a machine. Every change goes to the journal."""

from __future__ import annotations

from shoal.control.journal import Journal
from shoal.control.restoring import KEYS, key_of
from shoal.messages.control import DeleteKey, GetKey, ListKeys, PutKey


class Keys:
    """See the module's docstring."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tables: dict[str, dict[bytes, bytes]] = {}

    def restore(self, tables: dict[str, dict[bytes, bytes]]) -> None:
        """What was written down."""
        self._tables = tables

    def put(self, message: PutKey) -> bool:
        """Whether the key is new."""
        table = self._tables.setdefault(message.namespace, {})
        new = message.key not in table
        if new or message.overwrite:
            table[message.key] = message.value
            self._journal.write(KEYS, key_of(message.namespace, message.key), message.value)
        return new

    def get(self, message: GetKey) -> bytes | None:
        """The value."""
        return self._tables.get(message.namespace, {}).get(message.key)

    def delete(self, message: DeleteKey) -> int:
        """How many keys there were."""
        table = self._tables.get(message.namespace, {})
        if message.by_prefix:
            keys = [key for key in table if key.startswith(message.key)]
        else:
            keys = [message.key] if message.key in table else []
        for key in keys:
            del table[key]
            self._journal.write(KEYS, key_of(message.namespace, key), None)
        if not table:
            # Namespaces come and go with jobs.
            self._tables.pop(message.namespace, None)
        return len(keys)

    def list(self, message: ListKeys) -> list[bytes]:
        """The keys with a prefix."""
        table = self._tables.get(message.namespace, {})
        return [key for key in table if key.startswith(message.prefix)]
