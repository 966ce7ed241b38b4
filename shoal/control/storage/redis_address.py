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
    shown = _without_secrets(parts)

    def refuse(what: str) -> NoReturn:
        raise StorageAddressError(f"the storage address {shown} {what}")

    if parts.scheme not in SCHEMES:
        refuse(f"begins with none of {', '.join(SCHEMES)}")
    tls = parts.scheme.startswith("rediss")
    by_sentinel = parts.scheme.endswith("+sentinel")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = _OPTIONS | (_TLS_OPTIONS if tls else frozenset())
    known |= (
        _SENTINEL_OPTIONS
        if by_sentinel
        else frozenset({"db"} if parts.scheme == "redis+unix" else ())
    )
    for name in query:
        if name in _TLS_OPTIONS and not tls:
            refuse(f"has the option {name}, which needs TLS: write rediss:// for redis://")
        if name not in known:
            refuse(f"has no option {name!r}; there are: {', '.join(sorted(known))}")

    def number(name: str, text: str) -> int:
        if not text.isascii() or not text.isdigit():
            refuse(f"gives {text!r} for {name}, which is a number")
        return int(text)

    def yes(name: str, default: bool) -> bool:
        text = query.get(name)
        if text is not None and text.lower() not in _YES_NO:
            refuse(f"gives {text!r} for {name}, which is yes or no")
        return default if text is None else _YES_NO[text.lower()]

    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
    }
    path = unquote(parts.path)
    if parts.scheme == "redis+unix":
        if places or not path:
            refuse("names no socket: write redis+unix:///path/to/socket")
        hosts: tuple[tuple[str, int], ...] = ()
        options["db"] = number("db", query.get("db", "0"))
    else:
        default_port = _SENTINEL_PORT if by_sentinel else _PORT
        hosts = tuple(_host_and_port(place, default_port, refuse) for place in places.split(","))
        path = path.strip("/")
        if by_sentinel:
            if not path or "/" in path:
                refuse("does not end in the name of the master: …host:port/master-name")
            options["db"] = number("db", query.get("db", "0"))
        else:
            if len(hosts) > 1:
                refuse("names several servers; only redis+sentinel:// takes several")
            options["db"] = number("the database after the /", path or "0")
    if tls:
        options |= {
            "ssl": True,
            "ssl_ca_certs": query.get("tls_ca"),
            "ssl_certfile": query.get("tls_cert"),
            "ssl_keyfile": query.get("tls_key"),
        }
        if not yes("tls_verify", True):
            options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    sentinel_options: dict[str, Any] = {
        "db": 0,
        "username": query.get("sentinel_user"),
        "password": query.get("sentinel_password"),
    }
    return RedisAddress(
        parts.scheme,
        hosts,
        path,
        options,
        sentinel_options,
        number("wait", query.get("wait", "0")),
        yes("standby", False),
        shown,
    )


def _host_and_port(place: str, default: int, refuse: Any) -> tuple[str, int]:
    # IPv6 addresses stand in brackets.
    host, bracket, rest = place.rpartition("]")
    if bracket:
        host, port = host.removeprefix("["), rest.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    if not host:
        refuse("names no host")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        refuse(f"gives {port!r} for a port, which is a number from 1 to 65535")
    return host, int(port or default)


def _without_secrets(parts: SplitResult) -> str:
    credentials, at, places = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    query = "&".join(
        f"{name}={'***' if 'password' in name else value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    netloc = f"{user}{colon and ':***'}{at}{places}"
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"
