"""The control store's process, from its first to its last moment.

::

    whoever starts it ──stdin: ControlBoot──► control store ──► nodes, over TCP
                      ◄─stdout: ControlReady─┘

Started as `python -m shoal.control`, by `shoal start --head` or by a test. It reads one framed boot record from its standard input, which
so holds the token and never shows in the list of processes; it answers with one frame on its standard output, when it serves or why
it does not. After that it has no more use for either: it lives until SIGTERM, or, with `lifeline`, until the end of its standard
input. Its log goes to standard error, which its parent opens.

Order of the start: listen, so that a taken port is known before a storage is locked; load the storage; serve. Order of the end: let
nobody in, hang up, finish what was written.

A storage that fails ends the process with exit code 1 and the reason in the log: nobody has heard of what is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from shoal.config import Config
from shoal.control.server import Server, listen
from shoal.control.sessions import Sessions
from shoal.control.storage import StorageError
from shoal.control.storage.opening import open_storage, shown_address
from shoal.control.store import ControlStore
from shoal.messages.boot import ControlBoot, ControlBootAnswer, ControlFailed, ControlReady
from shoal.wire.descriptors import raise_descriptor_limit
from shoal.wire.framing import HEADER_BYTES, encode_frame

_MAX_BOOT_BYTES: Final = 1024 * 1024
_log = logging.getLogger("shoal.control")


def main() -> None:
    """Be the control store."""
    boot = _read_boot(0)
    _settle_signals()
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        level=logging.INFO,
    )
    try:
        listening = listen(boot.host, boot.port)
        context = _server_context(boot)
    except (OSError, ValueError) as error:
        _answer(ControlFailed(getattr(error, "strerror", None) or str(error)))
        sys.exit(1)
    raise_descriptor_limit()
    sys.exit(asyncio.run(_serve(boot, listening, context)))


async def _serve(
    boot: ControlBoot, listening: socket.socket, context: ssl.SSLContext | None
) -> int:
    """Run until told to end; the exit code."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[tuple[str, int]] = loop.create_future()

    def end(reason: str, code: int) -> None:
        if not over.done():
            over.set_result((reason, code))

    config: Config = boot.config
    try:
        storage = open_storage(
            boot.storage,
            cluster=boot.name,
            retry_s=config.storage_retry_s,
            lease_s=config.storage_lease_s,
        )
        store = ControlStore(
            loop,
            storage,
            lambda error: end(f"its storage failed: {error}", 1),
            config=config,
            name=boot.name,
            address=shown_address(boot.storage),
        )
        storage.state.listen(lambda text: _log.warning("the storage: %s", text))
        # A storage may wait for the end of its former user. Meanwhile we can be told to end, too.
        loading = asyncio.ensure_future(store.load())
        loop.add_signal_handler(signal.SIGTERM, end, "it was told to end (SIGTERM)", 0)
        if boot.lifeline:
            loop.add_reader(0, _on_lifeline, loop, end)
        await asyncio.wait([loading, over], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            listening.close()
            await store.close()
            return over.result()[1]
        loading.result()
    except StorageError as error:
        _log.error("the control store cannot start: %s", error)
        _answer(ControlFailed(str(error)))
        listening.close()
        return 1
    sessions = Sessions(loop, store, boot.token, config)
    server = Server(loop, listening, sessions.accept, context)
    sessions.start()
    gc.freeze()
    _log.info(
        "the control store of the cluster %s serves at %s, port %d; storage %s",
        boot.name,
        boot.host,
        server.port,
        shown_address(boot.storage),
    )
    _answer(ControlReady(server.port, os.getpid(), store.cluster_id))
    reason, code = await over
    _log.log(logging.ERROR if code else logging.INFO, "the control store ends: %s", reason)
    await server.close()
    sessions.close()
    # One turn, so that what was written to the nodes leaves.
    await asyncio.sleep(0)
    await store.close()
    return code


def _on_lifeline(loop: asyncio.AbstractEventLoop, end: Callable[[str, int], None]) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        end("whoever started it has ended", 0)


def _server_context(boot: ControlBoot) -> ssl.SSLContext | None:
    """TLS for who connects: we show our certificate, and they must show one of the same authority.

    Raises:
        ValueError: a file that is named cannot be used.
    """
    if not boot.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(boot.tls_cert, boot.tls_key or None)
        if boot.tls_ca:
            context.load_verify_locations(boot.tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"the files for TLS ({boot.tls_cert}, {boot.tls_key}, {boot.tls_ca}) cannot be used: {error}"
        ) from error
    return context


def _read_boot(fd: int) -> ControlBoot:
    size = int.from_bytes(_read_exactly(fd, HEADER_BYTES), "little")
    if size > _MAX_BOOT_BYTES:
        sys.exit(
            f"the boot record announces {size:,} bytes: this program is started by `shoal start --head`, not by hand"
        )
    return msgspec.msgpack.decode(_read_exactly(fd, size), type=ControlBoot)


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            sys.exit("whoever started this program ended before it had sent the boot record")
        data += piece
    return data


def _answer(answer: ControlBootAnswer) -> None:
    # Who asked may be gone; whether that matters, the lifeline tells.
    with contextlib.suppress(OSError):
        os.write(1, encode_frame(msgspec.msgpack.encode(answer)))


def _settle_signals() -> None:
    # The terminal is not ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
