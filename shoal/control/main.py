"""The control store's process, from its first to its last moment.

::

    whoever starts it ──stdin: ControlBoot──► control store ──► nodes, over TCP
                      ◄─stdout: Ready, BootFailed─┘

Started as `python -m shoal.control`. It reads one framed boot record from its standard input, so that the token shows in no list of
processes; it answers with one frame on its standard output, when it serves, or why it does not. If it has a starter, it ends with it (the
end of the input); else it lets go of both, and lives until SIGTERM. It inherits the listening socket and the lock of its folder; its log
goes to standard error, which its starter opens.

Order of the start: load the storage, which may wait for the end of its former user; serve; say so. Order of the end: let nobody in, hang
up, finish what was written, remove the folder.

A storage that fails ends the process with exit code 1 and the reason in the log: nobody has heard of what is lost. Its folder
stays, as after SIGKILL: SQLite's file may be in it, for the next control store.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from shoal.control.server import Server
from shoal.control.sessions import Sessions
from shoal.control.storage import StorageError
from shoal.control.storage.opening import open_storage, shown_address
from shoal.control.store import ControlStore
from shoal.messages.boot import BootFailed, ControlBoot, ControlFile, Ready
from shoal.version import __version__
from shoal.wire.boot_pipe import answer_boot, read_boot
from shoal.wire.daemon_log import log_to
from shoal.wire.descriptors import raise_descriptor_limit
from shoal.wire.session import CONTROL_FILE, control_log, write_private
from shoal.wire.tls import Tls, TlsConfigError

_log = logging.getLogger("shoal.control")


def main() -> None:
    """Be the control store."""
    boot = read_boot(ControlBoot, "`shoal start --head`")
    _settle_signals()
    log_to(control_log(boot.directory), boot.config.log_rotate_bytes)
    listening = socket.socket(fileno=boot.listen_fd)
    listening.setblocking(False)
    raise_descriptor_limit()
    try:
        tls = Tls.of(boot.config)
        code = asyncio.run(_serve(boot, listening, tls))
    except (TlsConfigError, StorageError) as error:
        _log.error("the control store cannot start: %s", error)
        answer_boot(BootFailed(str(error)))
        code = 1
    finally:
        listening.close()
    if code == 0:
        # In good order: whoever comes next finds nothing to clean up. The lock goes with the process.
        with contextlib.suppress(OSError):
            shutil.rmtree(boot.directory)
    sys.exit(code)


async def _serve(boot: ControlBoot, listening: socket.socket, tls: Tls | None) -> int:
    """Run until told to end; the exit code.

    Raises:
        StorageError: the storage cannot be opened.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[tuple[str, int]] = loop.create_future()

    def end(reason: str, code: int) -> None:
        if not over.done():
            over.set_result((reason, code))

    config = boot.config
    shown = shown_address(boot.storage)
    storage = open_storage(
        boot.storage,
        cluster=boot.cluster_name,
        retry_s=config.storage_retry_s,
        lease_s=config.storage_lease_s,
    )
    storage.state.listen(lambda text: _log.warning("the storage: %s", text))
    store = ControlStore(
        loop,
        storage,
        lambda error: end(f"its storage failed: {error}", 1),
        config=config,
        name=boot.cluster_name,
        address=shown,
    )
    loop.add_signal_handler(signal.SIGTERM, end, "it was told to end (SIGTERM)", 0)
    if boot.starter_pid:
        loop.add_reader(0, _on_lifeline, loop, end)
    try:
        loading = asyncio.ensure_future(store.load())
        # It may wait for the end of whoever has the storage now, and be told to end before that.
        over.add_done_callback(lambda _: loading.cancel())
        try:
            await loading
        except asyncio.CancelledError:
            return over.result()[1]
        sessions = Sessions(loop, store, boot.token, config)
        context = None if tls is None else tls.server
        server = Server(loop, listening, sessions.accept, config.door_strangers, context)
        sessions.start()
        _say_where(boot, shown)
        _log.info(
            "the control store of cluster %s serves at %s; storage: %s",
            boot.cluster_name,
            boot.place,
            shown,
        )
        gc.freeze()
        answer_boot(Ready(boot.place, os.getpid(), boot.place))
        if not boot.starter_pid:
            _let_go()
        reason, code = await over
        _log.log(logging.ERROR if code else logging.INFO, "the control store ends: %s", reason)
        await server.close()
        sessions.close()
        # One turn, so that what was written to the nodes leaves.
        await asyncio.sleep(0)
    finally:
        await store.close()
    return code


def _say_where(boot: ControlBoot, storage: str) -> None:
    """Leave word for commands of the same user."""
    word = ControlFile(
        cluster_name=boot.cluster_name,
        control=boot.place,
        pid=os.getpid(),
        starter_pid=boot.starter_pid,
        storage=storage,
        version=__version__,
    )
    write_private(f"{boot.directory}/{CONTROL_FILE}", msgspec.json.encode(word))


def _let_go() -> None:
    """Nobody waits at the other ends of these pipes any more."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def _on_lifeline(loop: asyncio.AbstractEventLoop, end: Callable[[str, int], None]) -> None:
    if not os.read(0, 4096):
        loop.remove_reader(0)
        end("whoever started it has ended", 0)


def _settle_signals() -> None:
    # The terminal is not ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
