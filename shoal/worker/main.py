"""How a worker begins and ends.

A worker is a fork of the zygote: everything below is imported already, and nothing has been opened. It listens, joins its node, works
until it is told to end or the node is gone, and leaves through `os._exit`: the interpreter it shares with the zygote
is not torn down page by page.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
from typing import TYPE_CHECKING

from shoal.config import load_config
from shoal.messages.node import RegisterWorker
from shoal.runtime import current_process, forked, reducers
from shoal.runtime.interrupts import Interrupts
from shoal.runtime.process import Process
from shoal.wire.handshake import proof
from shoal.worker import output
from shoal.worker.executor import Executor

if TYPE_CHECKING:
    from shoal.messages.boot import WorkerBoot


# Sets the cryptographic library up once, in the zygote, rather than in every worker.
proof(b"", b"", b"", b"")


def run(boot: WorkerBoot) -> None:
    """Be a worker. Never returns."""
    code = 1
    try:
        code = _work(boot)
    finally:
        output.flush()
        os._exit(code)


def _work(boot: WorkerBoot) -> int:
    source = output.take_over()
    faulthandler.enable(file=2)
    reducers.install()
    gc.enable()
    register = RegisterWorker(boot.worker_id, os.getpid(), boot.address)
    process = Process("worker", boot.node_path, boot.token, boot.address, register, load_config())
    process.job = boot.job
    process.namespace = boot.job.namespace
    process.env = boot.job.env
    process.worker_id = boot.worker_id
    if boot.job.log_format is not None:
        # Only here: the workers of other jobs need not hold it.
        from shoal.runtime.log_records import install

        install(boot.job.log_format)
    executor: Executor

    def wanted() -> bool:
        return executor.interrupt_wanted()

    interrupts = Interrupts(process.reactor.interrupt, wanted)
    executor = Executor(process, source, boot.job, interrupts.request)
    interrupts.install()
    process.reactor.interrupted = interrupts.check
    process.node_messages.on_lost = _end_with_node
    forked.install()
    current_process.set_process(process)
    process.begin()
    executor.run()
    _leave(process, executor)
    return 0


def _end_with_node(_why: str) -> None:
    """The node daemon is gone: whatever the user's code is doing, this process has no reason left to be."""
    output.flush()
    os._exit(1)


def _leave(process: Process, executor: Executor) -> None:
    """End in good order: the user's exit handlers, the last replies, the last events."""
    if executor.host is not None:
        executor.host.instance = None
    atexit._run_exitfuncs()
    with process.lock:
        process.settle()
        executor.runs.leave()
    process.drain(1.0)
    with contextlib.suppress(OSError):
        # What others own stays in shared memory; what only waited to be used again goes.
        process.store.leave()
