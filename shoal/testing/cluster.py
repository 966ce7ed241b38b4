"""Clusters of several nodes on one machine, for tests: real processes, each node with its own session folder, resources and store.

::

    test ──lifeline──► control store (storage: memory)
         ──lifeline──► node daemon ─► zygote ─► workers       (one of these for each node)

    with Cluster(head_node_args={"num_cpus": 2}) as cluster:
        cluster.add_node(num_cpus=1, resources={"disk": 1})
        cluster.wait_for_nodes()
        with cluster.connect():
            ...

Guarantees: every node and the control store end with the process that made the `Cluster`, however that ends, and leave nothing behind;
nodes of one `add_nodes` start at the same time, together with the control store if that is new; every wait is bounded.

A node that is removed gracefully says goodbye. One that is not is killed with SIGKILL: the others hear of it from the control store, as
they would if its machine had lost power, but sooner, since its connections close.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from shoal.api.session import RayContext, init
from shoal.config import Config, load_config
from shoal.messages.boot import Ready
from shoal.messages.control import ClusterStatus, StatusOfCluster
from shoal.messages.node import NodeRow
from shoal.runtime.control_client import ControlClient
from shoal.runtime.launch import Door, Head, begin_head
from shoal.runtime.session_folder import Session
from shoal.runtime.starting import Control, ControlFolder, begin_control, listen
from shoal.wire.handshake import new_token
from shoal.wire.tls import Tls

_HOST: Final = "127.0.0.1"
_LOOK_S: Final = 0.01
_STORE_BYTES: Final = 128 * 1024 * 1024

# Options of nodes under the names that Ray programs use, and what `begin_head` calls them.
_OPTIONS: Final = {
    "num_cpus": "num_cpus",
    "num_gpus": "num_gpus",
    "memory": "memory",
    "resources": "resources",
    "labels": "labels",
    "object_store_memory": "object_store_memory",
    "object_spilling_directory": "object_spilling_directory",
    "node_name": "node_name",
    "node_ip_address": "node_ip",
}
_WITHOUT_EFFECT: Final = frozenset({"include_dashboard", "dashboard_port", "dashboard_host"})


class ClusterNode:
    """A node of a `Cluster`.

    Attributes:
        node_id: Its id, in hexadecimal digits.
        place: Where its door is.
        pid: Of its daemon.
        session_dir: Its session folder.
        is_head: Whether it is the first.
    """

    def __init__(self, head: Head, ready: Ready, *, is_head: bool) -> None:
        self._head = head
        self.node_id = ready.node_id.hex()
        self.place = ready.place
        self.pid = head.pid
        self.session_dir = head.session.directory
        self.is_head = is_head

    @property
    def unique_id(self) -> str:
        """The node's id, as Ray calls it."""
        return self.node_id

    def is_alive(self) -> bool:
        """Whether its daemon runs."""
        return self._head.is_alive()

    def log_tail(self) -> str:
        """The last lines that its daemon wrote."""
        return self._head.log_tail()

    def kill(self) -> None:
        """SIGKILL to its daemon; what is left goes by itself. Returns when it has gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._head.stop()

    def stop(self) -> None:
        """End it in good order."""
        self._head.stop()

    def __repr__(self) -> str:
        return f"ClusterNode({self.node_id[:8]}, {self.place}, pid={self.pid})"


class Cluster:
    """See the module's docstring.

    Attributes:
        address: Host and port of the control store, for `shoal.init`.
        token: The secret of the cluster.
        nodes: The nodes that were not removed; the first is the head.
    """

    def __init__(
        self,
        initialize_head: bool = True,
        connect: bool = False,
        head_node_args: Mapping[str, Any] | None = None,
        *,
        storage: str = "memory:",
        system_config: Mapping[str, Any] | None = None,
        cluster_name: str = "",
    ) -> None:
        """Start the control store and, unless `initialize_head` is false, the head's node.

        Args:
            initialize_head: Whether to start the first node at once.
            connect: Whether to connect this process as a driver.
            head_node_args: Options of the first node, as for `add_node`; `_system_config` among them is as `system_config`.
            storage: Address of the control store's storage.
            system_config: Settings of `shoal.config`, for all nodes.
            cluster_name: How it is called; by default by a name of its own.
        """
        arguments = dict(head_node_args or {})
        settings = {**(system_config or {}), **(arguments.pop("_system_config", None) or {})}
        self._config: Config = load_config(settings)
        self._tls = Tls.of(self._config)
        self._storage = storage
        self._name = cluster_name or f"test-{secrets.token_hex(4)}"
        self._owner_pid = os.getpid()
        self._context: RayContext | None = None
        self.token = new_token()
        self.nodes: list[ClusterNode] = []
        self._control: Control | None = self._begin_control(listen(_HOST, 0))
        self.address = self._control.place
        try:
            if initialize_head:
                self._add([arguments], control=self._control)
            else:
                self._control.await_ready()
            if connect:
                self.connect()
        except BaseException:
            self.shutdown()
            raise

    def _begin_control(self, listening: Any) -> Control:
        with listening:
            return begin_control(
                ControlFolder(self._name),
                listening,
                self._config,
                cluster_name=self._name,
                token=self.token,
                storage=self._storage,
                lifeline=True,
            )

    # --- nodes ---------------------------------------------------------------------------------------------------

    @property
    def head_node(self) -> ClusterNode:
        """The first node."""
        return self.nodes[0]

    @property
    def worker_nodes(self) -> list[ClusterNode]:
        """All but the first."""
        return self.nodes[1:]

    @property
    def control_pid(self) -> int:
        """The process of the control store."""
        assert self._control is not None
        return self._control.pid

    def add_node(self, wait: bool = True, **options: Any) -> ClusterNode:
        """Start a node; when this returns it serves.

        Args:
            wait: Whether it must also be in the view of the control store by then.
            **options: num_cpus (1), num_gpus (0), memory, resources, labels, object_store_memory (128 MiB),
                object_spilling_directory, node_name.
        """
        (node,) = self._add([options])
        if wait:
            self.wait_for_nodes()
        return node

    def add_nodes(self, options: Sequence[Mapping[str, Any]]) -> list[ClusterNode]:
        """Start several nodes at the same time, one for each of `options` (as for `add_node`)."""
        nodes = self._add(options)
        self.wait_for_nodes()
        return nodes

    def _add(
        self, all_options: Sequence[Mapping[str, Any]], control: Control | None = None
    ) -> list[ClusterNode]:
        all_options = [_checked(options) for options in all_options]
        heads: list[Head] = []
        added: list[ClusterNode] = []
        try:
            heads += [
                self._begin(options, is_head=not self.nodes and not index)
                for index, options in enumerate(all_options)
            ]
            if control is not None:
                control.await_ready()
            for head in heads:
                ready = head.await_ready()
                added.append(ClusterNode(head, ready, is_head=not self.nodes and not added))
        except BaseException:
            for head in heads:
                head.stop(1.0)
            raise
        self.nodes += added
        return added

    def _begin(self, options: Mapping[str, Any], *, is_head: bool) -> Head:
        session = Session(token=self.token)
        return begin_head(
            session,
            self._config,
            door=Door(self.address, _HOST, cluster_name=self._name, is_head=is_head, lifeline=True),
            **options,
        )

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: in good order, or with SIGKILL. When this returns, the control store knows."""
        self.nodes.remove(node)
        if allow_graceful:
            node.stop()
        else:
            node.kill()
        self._await(lambda rows: node.node_id not in _alive(rows), f"{node} is still alive")

    def wait_for_nodes(self, timeout: float = 30.0) -> None:
        """Wait until the control store has all nodes, and no other.

        Raises:
            TimeoutError: it has not, or a node has ended meanwhile.
        """
        expected = {node.node_id for node in self.nodes}

        def there(rows: list[NodeRow]) -> bool:
            for node in self.nodes:
                if not node.is_alive():
                    raise TimeoutError(f"{node} has ended; its last words:\n{node.log_tail()}")
            return _alive(rows) == expected

        self._await(there, f"not exactly the nodes {sorted(expected)} are alive", timeout)

    def rows(self) -> list[NodeRow]:
        """The nodes as the control store knows them."""
        return self.status().nodes

    def status(self) -> StatusOfCluster:
        """What the control store says of itself."""
        with ControlClient(self.address, self.token, self._tls) as client:
            status: StatusOfCluster = client.ask(ClusterStatus())
        return status

    def _await(self, condition: Any, what_not: str, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(rows := self.rows()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"after {timeout_s:g} s {what_not}; the control store has {sorted(_alive(rows))} alive"
                )
            time.sleep(_LOOK_S)

    # --- drivers -------------------------------------------------------------------------------------------------

    def connect(self, **options: Any) -> RayContext:
        """Make this process a driver of the cluster, through its head's node; a context manager that ends that.

        Args:
            **options: Those of `shoal.init`.
        """
        self._context = init(self.address, **options)
        return self._context

    # --- the control store ---------------------------------------------------------------------------------------

    def kill_control(self) -> None:
        """SIGKILL to the control store. The nodes go on, and wait for another."""
        assert self._control is not None
        self._control.kill()

    def restart_control(self) -> None:
        """Start a control store where the one before was, which must have ended."""
        assert self._control is not None
        host, _, port = self.address.rpartition(":")
        self._control = self._begin_control(listen(host, int(port)))
        self._control.await_ready()

    # --- the end -------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End everything; may be called again. In a child forked by a test it does nothing: the cluster is the parent's."""
        if os.getpid() != self._owner_pid:
            return
        context, self._context = self._context, None
        nodes, self.nodes = self.nodes, []
        control, self._control = self._control, None
        try:
            if context is not None:
                context.disconnect()
        finally:
            # All are told before any is waited for.
            for node in nodes:
                node._head.hang_up()
            for node in nodes:
                node.stop()
            if control is not None:
                control.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _alive(rows: list[NodeRow]) -> set[str]:
    return {row.node_id.hex() for row in rows if row.alive}


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a node, as `begin_head` knows them."""
    unknown = options.keys() - _OPTIONS.keys() - _WITHOUT_EFFECT
    if unknown:
        raise ValueError(
            f"a node has no option {', '.join(map(repr, sorted(unknown)))}; the options are: {', '.join(_OPTIONS)}"
        )
    given = {
        _OPTIONS[name]: value
        for name, value in options.items()
        if name in _OPTIONS and value is not None
    }
    return {
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": _STORE_BYTES,
        "node_ip": _HOST,
        "prestart": 0,
        **given,
    }
