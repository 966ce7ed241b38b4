"""`shoal start`: a head (control store and node) or a further node, left running when the command is done.

::

    start --head            binds the port ─► control store ┐
                                          ─► node daemon    ┴─► both ready ─► what to do next
    start --address=H:P     asks the control store there, so that what does not fit is told at once ─► node daemon

Guarantees: a start that failed leaves nothing behind; every wait is bounded.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from shoal.cli import ports
from shoal.cli.ending import end_control, end_node
from shoal.cli.failures import Failure, Refused, Taken, Unreachable, told
from shoal.cli.tokens import find_token, where
from shoal.config import Config, load_config
from shoal.control.storage import StorageAddressError
from shoal.control.storage.opening import open_storage, storage_address
from shoal.core.byte_amounts import bytes_text
from shoal.errors import AuthenticationError
from shoal.messages.boot import NodeFile
from shoal.messages.control import ClusterStatus, StatusOfCluster
from shoal.runtime.control_client import ControlClient
from shoal.runtime.joining import (
    DEFAULT_PORT,
    FoundControl,
    find_controls,
    find_nodes,
    resolve,
)
from shoal.runtime.launch import Door, Head, begin_head
from shoal.runtime.session_folder import Session, session_root, sweep_dead_sessions
from shoal.runtime.starters import note_starter
from shoal.runtime.starting import (
    Control,
    ControlFolder,
    PortError,
    RunsAlready,
    begin_control,
    listen,
)
from shoal.store import default_capacity_bytes
from shoal.wire.addresses import make_place, split_place
from shoal.wire.tls import Tls

_LOOPBACK: Final = "127.0.0.1"
_SMALLEST_STORE: Final = 16 * 1024 * 1024
_WATCH_S: Final = 0.2

# Of programs written for other systems. They are accepted, so that scripts go on, and mean nothing here: workers need no ports, and
# there is no dashboard.
_WITHOUT_EFFECT: Final = (
    "--dashboard-host",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--ray-client-server-port",
    "--min-worker-port",
    "--max-worker-port",
    "--worker-port-list",
    "--object-manager-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--plasma-directory",
)


def _pairs(text: str) -> dict[str, Any]:
    """`{"a": 1}`, or `a=1,b=2`."""
    try:
        if text.strip().startswith("{"):
            return {str(name): value for name, value in json.loads(text).items()}
        pairs = (part.split("=", 1) for part in text.split(",") if part.strip())
        return {name.strip(): value.strip() for name, value in pairs}
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither like '{{\"a\": 1}}' nor like 'a=1,b=2'"
        ) from None


def _amounts(text: str) -> dict[str, float]:
    """Custom resources."""
    try:
        return {name: float(amount) for name, amount in _pairs(text).items()}
    except (ValueError, TypeError):
        raise click.BadParameter(f"{text!r}: amounts are numbers") from None


def _labels(text: str) -> dict[str, str]:
    """Labels of a node."""
    labels = _pairs(text)
    for name, value in labels.items():
        if not isinstance(value, str) or not name:
            raise click.BadParameter(f"{text!r}: names and values of labels are texts")
    return labels


def _without_effect(command: Callable[..., Any]) -> Callable[..., Any]:
    for name in _WITHOUT_EFFECT:
        command = click.option(name, hidden=True, expose_value=False)(command)
    return click.option("--disable-usage-stats", is_flag=True, hidden=True, expose_value=False)(
        command
    )


@click.command()
@click.option("--head", is_flag=True, help="Start a cluster: its control store, and a node.")
@click.option("--address", metavar="HOST:PORT", help="Start a node of the cluster there.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Where the control store serves (with --head); 0 for any free port. [default: {DEFAULT_PORT}]",
)
@click.option(
    "--node-ip-address",
    metavar="IP",
    help="The address of this machine that the node uses, and that others reach it by. [default: 127.0.0.1, or for a node of a cluster on "
    "another machine the address by which this one reaches it]",
)
@click.option(
    "--node-manager-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the node's door. [default: any free]",
)
@click.option("--node-name", default="", help="Name of the node, for people.")
@click.option("--num-cpus", type=click.FloatRange(0), help="CPUs. [default: those there are]")
@click.option("--num-gpus", type=click.FloatRange(0), help="GPUs. [default: those there are]")
@click.option("--memory", type=click.IntRange(1), help="Bytes that tasks may reserve.")
@click.option("--resources", type=_amounts, help="Custom resources, as JSON.")
@click.option("--labels", type=_labels, help="Labels of the node, as JSON or a=1,b=2.")
@click.option(
    "--object-store-memory",
    type=click.IntRange(1),
    help="Bytes of the object store. [default: 30 % of the memory]",
)
@click.option(
    "--object-spilling-directory",
    type=click.Path(),
    help="Where objects are written that the store has no room for; the URL of a place elsewhere is where they go on to when the "
    "disk is short. [default: the session's folder]",
)
@click.option(
    "--storage",
    help="Where the control store writes (with --head): memory:, sqlite:///file, redis://host … "
    "[default: $SHOAL_STORAGE, or a file that ends with the cluster]",
)
@click.option(
    "--cluster-name",
    help="Name of the cluster (with --head); a cluster that is taken over must have the same. [default: default]",
)
@click.option(
    "--temp-dir", help="Where session folders are. [default: $SHOAL_TMPDIR, /tmp/shoal-UID]"
)
@click.option("--tls-cert", type=click.Path(), help="This node's certificate (PEM).")
@click.option("--tls-key", type=click.Path(), help="The certificate's key (PEM).")
@click.option("--tls-ca", type=click.Path(), help="The cluster's authority (PEM).")
@click.option("--system-config", help="Settings of shoal.config, as JSON.")
@click.option("--include-dashboard", type=bool, help="There is none yet; true is refused.")
@click.option(
    "--block",
    is_flag=True,
    help="Stay until the node ends; what was started ends with the command.",
)
@_without_effect
def start(
    head: bool,
    address: str | None,
    port: int | None,
    node_ip_address: str | None,
    node_manager_port: int,
    storage: str | None,
    cluster_name: str | None,
    temp_dir: str | None,
    system_config: str | None,
    include_dashboard: bool | None,
    block: bool,
    **options: Any,
) -> None:
    """Start a cluster, or a node of one.

    `shoal start --head` makes this machine the head of a new cluster. `shoal start --address=HOST:PORT` adds this machine to the one
    whose head is there. What is started goes on when the command has ended, until `shoal stop`.
    """
    if head == (address is not None):
        raise click.UsageError(
            "say --head to start a cluster, or --address=HOST:PORT to start a node of one"
        )
    if not head:
        for name, value in (("port", port), ("storage", storage), ("cluster-name", cluster_name)):
            if value is not None:
                raise click.UsageError(f"--{name} is for --head: the cluster has its own already")
    if include_dashboard:
        raise click.UsageError("--include-dashboard=true: this release of shoal has no dashboard")
    with told():
        config = _config(system_config, options)
        root = session_root(temp_dir)
        sweep_dead_sessions(root)
        starting = _Start(config, root, node_manager_port, options)
        starting.mind_signals(block)
        if head:
            ip = _checked_ip(node_ip_address or _LOOPBACK)
            number = DEFAULT_PORT if port is None else port
            starting.head(ip, number, cluster_name or "default", storage)
        else:
            assert address is not None
            starting.node(resolve(address), node_ip_address)
    starting.say_what_next(temp_dir)
    if block:
        starting.stay()


def _config(system_config: str | None, options: dict[str, Any]) -> Config:
    try:
        overrides = json.loads(system_config) if system_config else {}
    except ValueError as error:
        raise click.UsageError(f"--system-config is no JSON: {error}") from None
    if not isinstance(overrides, dict):
        raise click.UsageError("--system-config must be an object of JSON, as in '{\"a\": 1}'")
    for name in ("tls_cert", "tls_key", "tls_ca"):
        path = options.pop(name)
        if path:
            overrides[name] = path
    config = load_config(overrides)
    # The daemons run elsewhere, and may be started again from there.
    paths = {
        name: os.path.abspath(getattr(config, name))
        for name in ("tls_cert", "tls_key", "tls_ca")
        if getattr(config, name)
    }
    return load_config({**overrides, **paths}) if paths else config


def _checked_ip(text: str) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise click.UsageError(
            f"--node-ip-address={text}: that is no IP address of this machine"
        ) from None
    if found.is_unspecified:
        raise click.UsageError(
            f"--node-ip-address={text}: others must be able to reach the node by this address, so name one of this machine"
        )
    return str(found)


class _Start:
    """One start, from its options to what is told of it."""

    def __init__(self, config: Config, root: str, door_port: int, options: dict[str, Any]) -> None:
        self._config = config
        self._root = root
        self._door_port = door_port
        self._options = options
        self._tls = Tls.of(config)
        self._control: Control | None = None
        self._node: Head | None = None
        self._file: NodeFile | None = None
        self._cluster_name = ""
        self._taken_over = False
        self._told: list[int] = []

    def mind_signals(self, block: bool) -> None:
        """Until the node serves, a signal ends the start in good order; if the command is to stay after that, it ends its stay."""

        def on_signal(number: int, _frame: Any) -> None:
            if self._file is None or not block:
                sys.exit(128 + number)
            self._told.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, on_signal)

    # --- the two ways --------------------------------------------------------------------------------------------

    def head(self, ip: str, port: int, cluster_name: str, storage: str | None) -> None:
        """Start a cluster."""
        token = find_token(make=True)
        storage = self._storage(storage, cluster_name)
        self._cluster_name = cluster_name
        try:
            with self._listen(ip, port) as listening:
                folder = self._folder(cluster_name)
                self._taken_over = folder.taken_up and not storage
                self._control = begin_control(
                    folder,
                    listening,
                    self._config,
                    cluster_name=cluster_name,
                    token=token,
                    storage=storage,
                )
            self._begin_node(token, self._control.place, ip, is_head=True)
            self._control.await_ready()
            self._await_node()
        except BaseException:
            if self._node is not None:
                self._node.stop()
            if self._control is not None:
                self._control.give_up()
            raise

    def _folder(self, cluster_name: str) -> ControlFolder:
        try:
            folder = ControlFolder(cluster_name, self._root)
        except RunsAlready as error:
            raise Taken(
                f"{error}. Add nodes to it with `shoal start --address=…`, end it with `shoal stop`, or give this one another name with "
                "--cluster-name"
            ) from None
        try:
            note_starter(folder.directory)
        except BaseException:
            folder.give_up()
            raise
        return folder

    def node(self, control: str, ip: str | None) -> None:
        """Start a node of a cluster."""
        token = find_token()
        status = self._look_at(control, token)
        self._cluster_name = status.name
        ip = _checked_ip(ip) if ip else _own_address(control)
        self._begin_node(token, control, ip, is_head=False)
        self._await_node()

    def _storage(self, storage: str | None, cluster_name: str) -> str:
        """The storage's address, checked before anything is started; "" for the default."""
        try:
            address = storage or storage_address(os.environ) or ""
            if address:
                # Nothing is opened or reached by this.
                open_storage(address, cluster=cluster_name)
        except StorageAddressError as error:
            raise Failure(str(error)) from None
        return address

    def _listen(self, ip: str, port: int) -> socket.socket:
        try:
            return listen(ip, port)
        except PortError as error:
            if not error.taken:
                raise Failure(f"{error}. Choose one with --node-ip-address") from None
            place = make_place(ip, port)
            ours = [c for c in find_controls(self._root) if c.alive and _serves_at(c, place)]
            if ours:
                raise Taken(
                    f"the cluster {ours[0].cluster_name!r} runs already at {place}. Add nodes to it with `shoal start --address={place}`, "
                    "end it with `shoal stop`, or give this one another --port and --cluster-name"
                ) from None
            who = ports.holder_of(port)
            by = f"by {who}" if who else "by another process (which one this user may not see)"
            raise Taken(
                f"the port {port} of {ip} is taken {by}. End that one, or choose another with --port"
            ) from None

    def _look_at(self, control: str, token: bytes) -> StatusOfCluster:
        """Ask the control store, so that what does not fit is known before a process is started."""
        try:
            with ControlClient(
                control, token, self._tls, wait_s=self._config.join_timeout_s
            ) as client:
                status: StatusOfCluster = client.ask(ClusterStatus())
        except AuthenticationError as error:
            hint = f" (the token here comes from {where()})" if "token" in str(error) else ""
            raise Refused(f"{error}{hint}") from None
        except ConnectionError as error:
            raise Unreachable(
                f"{error}. Is the head started (`shoal start --head` there), is its address right, does it listen on one that this machine can "
                "reach (--node-ip-address there), and does a firewall let the port through?"
            ) from None
        return status

    # --- the node ------------------------------------------------------------------------------------------------

    def _begin_node(self, token: bytes, control: str, ip: str, *, is_head: bool) -> None:
        session = Session(self._root, token)
        try:
            note_starter(session.directory)
            _check_store(session.shm_dir, self._options["object_store_memory"])
        except BaseException:
            session.remove()
            raise
        door = Door(control, ip, self._door_port, self._cluster_name, is_head=is_head)
        self._node = begin_head(session, self._config, node_ip=ip, door=door, **self._options)

    def _await_node(self) -> None:
        assert self._node is not None
        ready = self._node.await_ready()
        (found,) = [n for n in find_nodes(self._root) if n.file.node_id == ready.node_id.hex()]
        self._file = found.file

    # --- afterwards ----------------------------------------------------------------------------------------------

    def say_what_next(self, temp_dir: str | None) -> None:
        """Tell what runs now, and what can be done with it."""
        file, node = self._file, self._node
        assert file is not None
        assert node is not None
        if self._taken_over:
            click.echo(
                "A control store of this name was killed before; what it had written down is taken up."
            )
        what = "The cluster" if file.is_head else "A node of the cluster"
        click.echo(f"{what} {file.cluster_name!r} runs (control store at {file.control}).")
        click.echo(
            f"This node: {file.node_id[:8]} at {file.place}, logs in {node.session.directory}/logs"
        )
        click.echo("")
        if temp_dir:
            click.echo("Here and in every shell that is to find it:")
            click.echo(f"    export SHOAL_TMPDIR={os.path.abspath(temp_dir)}")
        click.echo("In Python on this machine:")
        click.echo(f'    shoal.init(address="{file.control}")')
        if file.is_head:
            self._say_how_to_add_nodes(file)
        click.echo("To see it:  shoal status")
        click.echo("To end it:  shoal stop")
        if self._node is not None:
            self._node.leave()
        if self._control is not None:
            self._control.leave()

    def _say_how_to_add_nodes(self, file: NodeFile) -> None:
        host, _ = split_place(file.control)
        click.echo("To add a node:")
        click.echo(f"    shoal start --address={file.control}")
        if ipaddress.ip_address(host).is_loopback:
            click.echo(
                "    (on this machine; for others, start the head with --node-ip-address=IP, an address that they reach)"
            )
        else:
            click.echo(
                f"    (on other machines with the token of this one: copy {where()} to ~/.shoal/token there, mode 0600, or set $SHOAL_TOKEN)"
            )

    def stay(self) -> None:
        """Until one of the processes ends, or this one is told to; then end what was started."""
        assert self._node is not None
        processes = {"the node daemon": self._node.is_alive}
        if self._control is not None:
            processes["the control store"] = self._control.program.is_alive
        ended = ""
        while not self._told and not ended:
            ended = next((what for what, is_alive in processes.items() if not is_alive()), "")
            time.sleep(_WATCH_S)
        directory = self._node.session.directory
        for node in find_nodes(self._root):
            if node.directory == directory:
                end_node(node, self._config.exit_grace_s * 4)
        if self._control is not None:
            for control in find_controls(self._root):
                if control.directory == self._control.folder.directory:
                    end_control(control, self._config.exit_grace_s * 4)
        if ended:
            raise Failure(f"{ended} has ended, and what was started with it")


def _serves_at(control: FoundControl, place: str) -> bool:
    return control.file is not None and control.file.control == place


def _check_store(shm_dir: str, wanted: int | None) -> None:
    """Refuse a store that does not fit: writing to shared memory that is full kills the writer."""
    free = default_capacity_bytes(Path(shm_dir), 1e9)
    needed = _SMALLEST_STORE if wanted is None else wanted
    if needed > free:
        where_ = os.path.dirname(shm_dir)
        raise Failure(
            f"there is not enough shared memory: the object store is to have {bytes_text(needed)}{' at the least' if wanted is None else ''}, and "
            f"{where_} has {bytes_text(free)} free. Ask for less with --object-store-memory, or make room there (in a container: "
            "start it with a larger --shm-size)"
        )


def _own_address(control: str) -> str:
    """The address of this machine from which the control store is reached."""
    host, port = split_place(control)
    if ipaddress.ip_address(host).is_loopback:
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        # A datagram socket that is connected sends nothing; the kernel only chooses the route.
        sock.connect((host, port))
        return str(sock.getsockname()[0])
