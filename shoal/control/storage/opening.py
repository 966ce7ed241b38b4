"""Which storage an address means, and where the address comes from.

::

    memory:                        ends with the process
    sqlite:///absolute/path        one file (sqlite://relative/path is refused: relative to what?)
    redis://… and its kin          a Redis or Valkey server; see `redis_address`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shoal.control.storage import Storage, StorageAddressError, StorageError
from shoal.control.storage.memory import MemoryStorage

KNOWN: Final = "memory:, sqlite:///absolute/path, redis://host:port/db, rediss://… (TLS), redis+unix:///socket, redis+sentinel://host:port,host:port/master-name"

_REDIS: Final = frozenset({"redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel"})


def open_storage(
    url: str, *, cluster: str = "default", retry_s: float = 60.0, lease_s: float = 10.0
) -> Storage:
    """The storage at an address; nothing is opened or reached before its `load`.

    `cluster` tells clusters on one Redis server apart. `retry_s` and `lease_s` are `storage_retry_s` and `storage_lease_s`
    of the configuration.

    Raises:
        StorageAddressError: the address is none that shoal knows.
        StorageError: its backend is not installed.
    """
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme == "memory":
        if url.partition(":")[2].strip("/"):
            raise StorageAddressError(
                f"the storage address {url!r} says more than memory:, which takes nothing"
            )
        return MemoryStorage()
    # The others are imported when they are meant: a head with neither starts sooner.
    if scheme == "sqlite":
        from shoal.control.storage.sqlite import SqliteStorage

        return SqliteStorage(_file(url), retry_s=retry_s)
    if scheme in _REDIS:
        try:
            from shoal.control.storage.redis import RedisStorage
            from shoal.control.storage.redis_address import parse_address
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise StorageError(
                "storage in Redis needs the package redis, which is not installed: pip install 'shoal[redis]'"
            ) from error
        return RedisStorage(parse_address(url), cluster, retry_s=retry_s, lease_s=lease_s)
    what = f"begins with {scheme}:, which is unknown" if scheme else "has no scheme"
    raise StorageAddressError(f"the storage address {what}; the storages are: {KNOWN}")


def shown_address(url: str) -> str:
    """An address as it may be shown: without passwords."""
    if url.partition(":")[0].lower() not in _REDIS:
        return url
    from shoal.control.storage.redis_address import parse_address

    return parse_address(url).shown


def storage_address(environ: Mapping[str, str]) -> str | None:
    """The address that the environment names: `SHOAL_STORAGE`, or `SHOAL_REDIS_ADDRESS` for short; None if neither.

    `SHOAL_REDIS_ADDRESS` is `host`, `host:port`, or any address of Redis in full.

    Raises:
        StorageAddressError: both are set, and disagree.
    """
    full = environ.get("SHOAL_STORAGE", "").strip()
    redis = environ.get("SHOAL_REDIS_ADDRESS", "").strip()
    if redis and "://" not in redis:
        redis = f"redis://{redis}"
    if full and redis and full != redis:
        raise StorageAddressError(
            "SHOAL_STORAGE and SHOAL_REDIS_ADDRESS name different storages: unset one of them"
        )
    return full or redis or None


def _file(url: str) -> str:
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or parts.path.endswith("/"):
        raise StorageAddressError(
            f"the storage address {url!r} names no file: write sqlite:///absolute/path/to/file, with three slashes"
        )
    if parts.query or parts.fragment:
        raise StorageAddressError(
            f"the storage address {url!r} has options, and sqlite takes none: write %3F for ? and %23 for # in paths"
        )
    return unquote(parts.path)
