"""How a Redis or Valkey server is written down, and a client for it.

::

    redis://[user:password@]host[:port][/db]                            rediss:// for TLS
    redis+unix:///path/to/socket[?db=…]
    redis+sentinel://[user:password@]host[:port][,host[:port]…]/master  rediss+sentinel:// for TLS
        ?db=…  &sentinel_user=…  &sentinel_password=…

    with TLS:    ?tls_ca=FILE  &tls_cert=FILE  &tls_key=FILE  &tls_verify=no
    of commits:  ?wait=N       a commit waits until N replicas have it, too
    of leading:  ?standby=yes  where another control store leads, wait until it does not

Characters with a meaning in addresses are written %XX in users and passwords. Passwords appear in no text that this makes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, NoReturn, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from shoal.control.storage import StorageAddressError

SCHEMES: Final = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")

_ANSWER_S: Final = 5.0
"""How long the server may take to connect or to answer. Longer: slower to notice one that hangs."""

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_TLS_OPTIONS: Final = frozenset({"tls_ca", "tls_cert", "tls_key", "tls_verify"})
_OPTIONS: Final = frozenset({"wait", "standby"})
_SENTINEL_OPTIONS: Final = frozenset({"db", "sentinel_user", "sentinel_password"})
_YES_NO: Final = {"yes": True, "1": True, "true": True, "no": False, "0": False, "false": False}


class RedisAddress(NamedTuple):
    """One server, or the sentinels that know it."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    """The server, or the sentinels; empty for a socket."""
    path: str
    """The socket; or the name that sentinels know the master by."""
    options: dict[str, Any]
    """Arguments of the client: user, password, db, TLS."""
    sentinel_options: dict[str, Any]
    wait: int
    standby: bool
    shown: str
    """The address without secrets."""

    def client(self) -> tuple[Redis, list[Redis]]:
        """A client that tries everything once: what is tried again, and in which order, is the storage's decision. Beside it
        those of the sentinels that it asks; whoever closes the first closes them, too."""
        common: dict[str, Any] = {
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _ANSWER_S,
            "retry": Retry(NoBackoff(), 0),
            **self.options,
        }
        if self.scheme.endswith("+sentinel"):
            sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis annotates this constructor in part
                self.hosts,
                sentinel_kwargs=common | self.sentinel_options,
                **common,
            )
            master = sentinel.master_for(self.path, redis_class=Redis)
            return cast(Redis, master), sentinel.sentinels
        if self.scheme == "redis+unix":
            return Redis(unix_socket_path=self.path, **common), []
        ((host, port),) = self.hosts
        return Redis(host=host, port=port, **common), []


def parse_address(url: str) -> RedisAddress:
    """What an address says.

    Raises:
        StorageAddressError: it is none; the text says what is wrong with it.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StorageAddressError(f"the storage address cannot be read: {error}") from None
    reading = _Reading(parts)
    reading.check_names_of_options()
    hosts, path, db = reading.socket() if parts.scheme == "redis+unix" else reading.servers()
    return RedisAddress(
        scheme=parts.scheme,
        hosts=hosts,
        path=path,
        options=reading.credentials() | {"db": db} | reading.tls_options(),
        sentinel_options={
            "db": 0,
            "username": reading.query.get("sentinel_user"),
            "password": reading.query.get("sentinel_password"),
        },
        wait=reading.number("wait", reading.query.get("wait", "0")),
        standby=reading.yes("standby", False),
        shown=reading.shown,
    )


class _Reading:
    """An address that is being read: each method takes a part of it, and refuses what that part cannot be."""

    def __init__(self, parts: SplitResult) -> None:
        self.shown = _without_secrets(parts)
        if parts.scheme not in SCHEMES:
            self.refuse(f"begins with none of {', '.join(SCHEMES)}")
        self.scheme = parts.scheme
        self.tls = parts.scheme.startswith("rediss")
        self.by_sentinel = parts.scheme.endswith("+sentinel")
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._credentials, _, self._places = parts.netloc.rpartition("@")
        self._path = unquote(parts.path)

    def refuse(self, what: str) -> NoReturn:
        raise StorageAddressError(f"the storage address {self.shown} {what}")

    def check_names_of_options(self) -> None:
        known = _OPTIONS
        if self.tls:
            known |= _TLS_OPTIONS
        if self.by_sentinel:
            known |= _SENTINEL_OPTIONS
        elif self.scheme == "redis+unix":
            known |= {"db"}
        for name in self.query:
            if name in _TLS_OPTIONS and not self.tls:
                self.refuse(f"has the option {name}, which needs TLS: write rediss:// for redis://")
            if name not in known:
                self.refuse(f"has no option {name!r}; there are: {', '.join(sorted(known))}")

    def credentials(self) -> dict[str, Any]:
        user, _, password = self._credentials.partition(":")
        return {"username": unquote(user) or None, "password": unquote(password) or None}

    def socket(self) -> tuple[tuple[tuple[str, int], ...], str, int]:
        """(no servers, the path of the socket, the database)."""
        if self._places or not self._path:
            self.refuse("names no socket: write redis+unix:///path/to/socket")
        return (), self._path, self.number("db", self.query.get("db", "0"))

    def servers(self) -> tuple[tuple[tuple[str, int], ...], str, int]:
        """(the server or the sentinels, the name of the master, the database)."""
        hosts = tuple(map(self._host_and_port, self._places.split(",")))
        path = self._path.strip("/")
        if self.by_sentinel:
            if not path or "/" in path:
                self.refuse("does not end in the name of the master: …host:port/master-name")
            return hosts, path, self.number("db", self.query.get("db", "0"))
        if len(hosts) > 1:
            self.refuse("names several servers; only redis+sentinel:// takes several")
        return hosts, path, self.number("the database after the /", path or "0")

    def _host_and_port(self, place: str) -> tuple[str, int]:
        # IPv6 addresses stand in brackets.
        host, bracket, rest = place.rpartition("]")
        if bracket:
            host, port = host.removeprefix("["), rest.removeprefix(":")
        else:
            host, _, port = place.partition(":")
        if not host:
            self.refuse("names no host")
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            self.refuse(f"gives {port!r} for a port, which is a number from 1 to 65535")
        return host, int(port or (_SENTINEL_PORT if self.by_sentinel else _PORT))

    def tls_options(self) -> dict[str, Any]:
        if not self.tls:
            return {}
        options: dict[str, Any] = {
            "ssl": True,
            "ssl_ca_certs": self.query.get("tls_ca"),
            "ssl_certfile": self.query.get("tls_cert"),
            "ssl_keyfile": self.query.get("tls_key"),
        }
        if not self.yes("tls_verify", True):
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        return options

    def number(self, name: str, text: str) -> int:
        if not text.isascii() or not text.isdigit():
            self.refuse(f"gives {text!r} for {name}, which is a number")
        return int(text)

    def yes(self, name: str, default: bool) -> bool:
        text = self.query.get(name)
        if text is None:
            return default
        if text.lower() not in _YES_NO:
            self.refuse(f"gives {text!r} for {name}, which is yes or no")
        return _YES_NO[text.lower()]


def _without_secrets(parts: SplitResult) -> str:
    credentials, at, places = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    query = "&".join(
        f"{name}={'***' if 'password' in name else value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    netloc = f"{user}{colon and ':***'}{at}{places}"
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"
