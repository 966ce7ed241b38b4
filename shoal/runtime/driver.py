"""A driver's session from beginning to end: head, runtime, output of the workers, Ctrl-C.

Started in this order and ended in the reverse: session folder, head process, runtime, console, signal handler. A driver that joins a
cluster takes a node's session folder and daemon as it finds them, and leaves them so.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from shoal.config import Config
from shoal.errors import ShoalError
from shoal.messages.node import Exit, Goodbye, Job, Log, RegisterDriver, Reply
from shoal.runtime import current_process, forked, reducers
from shoal.runtime.console import Console
from shoal.runtime.interrupts import Interrupts
from shoal.runtime.launch import Head, Session, launch_head
from shoal.wire.addresses import DRIVER, LOCAL, make_address, make_name
from shoal.wire.descriptors import MOST_WITH_USER_CODE, raise_descriptor_limit

if TYPE_CHECKING:
    from shoal.runtime.joining import FoundNode
    from shoal.runtime.process import Process

logger = logging.getLogger("shoal")

_GOODBYE_TIMEOUT_S = 5.0


class Driver:
    """See the module's docstring.

    Attributes:
        process: The runtime.
        head: The head process, if this driver has started it.
        node: The node through which it has joined a cluster, if it has.
        node_path: Where the node daemon listens.
    """

    process: Process

    def __init__(
        self,
        config: Config,
        job: Job,
        *,
        log_to_driver: bool,
        preload: list[str],
        temp_dir: str | None = None,
        node: FoundNode | None = None,
        **resources: Any,
    ) -> None:
        """`resources` and `temp_dir` are for a session of one's own, `node` is for joining."""
        reducers.install()
        forked.install()
        # Left so at the end: what the program has open by then may be more than it began with.
        raise_descriptor_limit(MOST_WITH_USER_CODE)
        # First, because it checks what the user has set in the environment.
        self._console = Console.from_environment(config)
        self._console_timer = False
        self._pid = os.getpid()
        self._closed = False
        # Before anything is made: from here on Ctrl-C interrupts no code of ours half-way.
        self._interrupts = Interrupts(self._interrupt_waiting)
        interrupted = self._interrupts.check if self._interrupts.install() else None
        try:
            name = make_name(DRIVER)
            self.node = node
            self.head: Head | None = None
            if node is None:
                session = Session(temp_dir)
                token = session.token
                job.owner = make_address(LOCAL, name)
                self.head = launch_head(
                    session,
                    config,
                    job=job,
                    preload=preload,
                    meanwhile=_import_runtime,
                    interrupted=interrupted,
                    **resources,
                )
                self.node_path = self.head.path
            else:
                token = node.token()
                job.owner = make_address(node.file.place, name)
                self.node_path = node.path
            try:
                from shoal.runtime.process import Process

                register = RegisterDriver(self._pid, job.owner, job, preload, log_to_driver)
                self.process = Process("driver", self.node_path, token, job.owner, register, config)
            except BaseException:
                if self.head is not None:
                    self.head.stop()
                raise
        except BaseException:
            self._interrupts.uninstall()
            raise
        process = self.process
        process.job = job
        process.namespace = job.namespace
        process.env = job.env
        process.node_handlers[Log] = self._on_log
        process.node_handlers[Exit] = self._on_exit
        process.node_messages.on_lost = self._on_node_lost
        process.reactor.interrupted = interrupted
        current_process.set_process(process)
        process.begin()

    def _interrupt_waiting(self) -> None:
        # While the runtime is being made nobody waits in it.
        if hasattr(self, "process") and not self._closed:
            self.process.reactor.interrupt()

    def _on_log(self, message: Log) -> None:
        self._console.show(message)
        if not self._console_timer:
            self._arm_console()

    def _on_exit(self, message: Exit) -> None:
        self.process.node_messages.last_words = message.reason

    def _arm_console(self) -> None:
        """See to it that the counts of repeated lines are told in time (with the lock held)."""
        deadline_ns = self._console.next_deadline()
        self._console_timer = deadline_ns is not None
        if deadline_ns is not None:
            self.process.reactor.call_at(deadline_ns / 1e9, self._tick_console)

    def _tick_console(self) -> None:
        self._console.tick()
        with self.process.lock:
            self._arm_console()

    def _on_node_lost(self, why: str) -> None:
        tail = "" if self.head is None else self.head.log_tail()
        said = f"; its last words:\n{tail}" if tail else ""
        logger.error("%s%s", why, said)

    def close(self) -> None:
        """End the session, or leave the cluster. Leaves no process, file or shared memory behind, also if Ctrl-C interrupts it: that ends
        the waiting for a goodbye, and is raised when everything has gone."""
        if os.getpid() != self._pid or self._closed:
            return
        try:
            self.process.node.request(Goodbye, Reply, _GOODBYE_TIMEOUT_S)
        except (ShoalError, TimeoutError) as error:
            # The node is gone or stuck: ending the head below takes care of everything.
            logger.debug("the node did not say goodbye: %s", error)
        finally:
            self._end()

    def _end(self) -> None:
        process = self.process
        self._closed = True
        # From here on an interrupt waits until all is done.
        process.reactor.interrupted = None
        if current_process.process is process:
            current_process.set_process(None)
        process.run_callbacks()
        process.close(unlink=True)
        self._console.close()
        if self.head is not None:
            self.head.stop()
        self._interrupts.uninstall()


def _import_runtime() -> None:
    import shoal.runtime.process  # noqa: F401 - loaded here, and used when the head is ready
