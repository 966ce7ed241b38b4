"""What an address of a storage means, and what is said of one that means nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.control.storage import StorageAddressError, StorageError
from shoal.control.storage.memory import MemoryStorage
from shoal.control.storage.opening import open_storage, storage_address
from shoal.control.storage.redis import RedisStorage
from shoal.control.storage.redis_address import parse_address
from shoal.control.storage.sqlite import SqliteStorage


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory:", MemoryStorage),
        ("memory://", MemoryStorage),
        ("sqlite:///tmp/control.db", SqliteStorage),
        ("redis://localhost", RedisStorage),
        ("rediss://localhost:7000/2", RedisStorage),
        ("redis+unix:///run/redis.sock?db=1", RedisStorage),
        ("redis+sentinel://a,b:1/ours", RedisStorage),
    ],
)
def test_each_scheme_has_its_backend(url: str, kind: type) -> None:
    storage = open_storage(url)
    assert isinstance(storage, kind)
    assert storage.state.text == "ok"


def test_a_path_may_hold_any_character() -> None:
    storage = open_storage("sqlite:///tmp/a%20b%3Fc%23d.db")
    assert isinstance(storage, SqliteStorage)
    assert storage._path == Path("/tmp/a b?c#d.db")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "postgres://localhost",
            "begins with postgres:, which is unknown; the storages are: memory:, sqlite:",
        ),
        ("", "has no scheme; the storages are: memory:"),
        ("/tmp/control.db", "has no scheme"),
        ("memory:everything", "more than memory:"),
        ("sqlite:control.db", "with three slashes"),
        ("sqlite://tmp/control.db", "with three slashes"),
        ("sqlite:///tmp/", "with three slashes"),
        ("sqlite:///tmp/x?mode=ro", "sqlite takes none"),
        ("redis://", "names no host"),
        ("redis://host:port", "gives 'port' for a port"),
        ("redis://host:70000", "gives '70000' for a port"),
        ("redis://host/first", "gives 'first' for the database"),
        ("redis://a,b", "several servers; only redis\\+sentinel://"),
        ("redis://[::1", "cannot be read"),
        ("redis://host?tls_ca=x", "needs TLS: write rediss://"),
        ("redis://host?wiat=1", "no option 'wiat'; there are: standby, wait"),
        ("redis://host?wait=many", "gives 'many' for wait, which is a number"),
        ("redis://host?standby=maybe", "which is yes or no"),
        ("redis+sentinel://host", "name of the master"),
        ("redis+unix://host/socket", "names no socket"),
    ],
)
def test_what_is_no_address_is_named(url: str, text: str) -> None:
    with pytest.raises(StorageAddressError, match=text):
        open_storage(url)


def test_a_cluster_needs_a_name_that_keys_can_hold() -> None:
    with pytest.raises(StorageAddressError, match="cannot be a cluster's name"):
        open_storage("redis://host", cluster="a}b")


@pytest.mark.parametrize(
    ("url", "hosts", "path", "options"),
    [
        ("redis://h", (("h", 6379),), "0", {"db": 0, "username": None, "password": None}),
        (
            "redis://u%40x:p%2F@h:1/5",
            (("h", 1),),
            "5",
            {"db": 5, "username": "u@x", "password": "p/"},
        ),
        ("redis://:secret@[::1]:7/", (("::1", 7),), "", {"username": None, "password": "secret"}),
        (
            "rediss://h?tls_ca=/ca&tls_cert=/c&tls_key=/k",
            (("h", 6379),),
            "",
            {"ssl": True, "ssl_ca_certs": "/ca", "ssl_certfile": "/c", "ssl_keyfile": "/k"},
        ),
        ("rediss://h?tls_verify=no", (("h", 6379),), "", {"ssl_cert_reqs": "none"}),
        (
            "rediss+sentinel://u:p@a,b:7/ours?db=3&sentinel_password=s",
            (("a", 26379), ("b", 7)),
            "ours",
            {"db": 3, "username": "u", "password": "p", "ssl": True},
        ),
    ],
)
def test_addresses_are_taken_apart(
    url: str, hosts: Any, path: str, options: dict[str, Any]
) -> None:
    address = parse_address(url)
    assert address.hosts == hosts
    if "sentinel" in url:
        assert address.path == path
        assert address.sentinel_options["password"] == "s"
    assert options.items() <= address.options.items()


def test_secrets_are_not_shown() -> None:
    url = "redis+sentinel://user:hidden@a,b:7/ours?sentinel_password=hidden&wait=1"
    address = parse_address(url)
    assert address.shown == "redis+sentinel://user:***@a,b:7/ours?sentinel_password=***&wait=1"
    with pytest.raises(StorageAddressError) as refused:
        parse_address("redis://user:hidden@host:port")
    assert "hidden" not in str(refused.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("redis", "redis_address"):
        monkeypatch.delitem(sys.modules, f"shoal.control.storage.{name}")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StorageError, match=r"pip install 'shoal\[redis\]'"):
        open_storage("redis://host")
    # The other backends do not care.
    assert isinstance(open_storage("memory:"), MemoryStorage)


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, None),
        ({"SHOAL_STORAGE": ""}, None),
        ({"SHOAL_STORAGE": "sqlite:///x"}, "sqlite:///x"),
        ({"SHOAL_REDIS_ADDRESS": "host"}, "redis://host"),
        ({"SHOAL_REDIS_ADDRESS": "host:7/2"}, "redis://host:7/2"),
        ({"SHOAL_REDIS_ADDRESS": "rediss://host"}, "rediss://host"),
        ({"SHOAL_REDIS_ADDRESS": "host", "SHOAL_STORAGE": "redis://host"}, "redis://host"),
    ],
)
def test_the_environment_names_a_storage(environ: dict[str, str], address: str | None) -> None:
    assert storage_address(environ) == address


def test_an_environment_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(StorageAddressError, match="unset one of them"):
        storage_address({"SHOAL_STORAGE": "memory:", "SHOAL_REDIS_ADDRESS": "host"})
