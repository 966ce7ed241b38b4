"""Every limit and default in one frozen record, read once, at the edge.

A field `inline_limit_bytes` is set by the environment variable `SHOAL_INLINE_LIMIT_BYTES` (or `SHOAL_inline_limit_bytes`, as those are
written who come from Ray; in capitals it wins), or by `init(_system_config={"inline_limit_bytes": …})`, which wins over both. What Ray
calls otherwise is refused with the name that it has here. The session's head process hands its record to every process of the session, so
that all of them agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec

Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and defaults. Beside each: what raising or lowering it costs."""

    # --- values -----------------------------------------------------------------------------------------------
    inline_limit_bytes: int = 100 * 1024
    """Values up to this size travel inside messages and live in their owner's memory. Higher: more copies through
    sockets and bigger owners. Lower: more files and locks for middle-sized values."""

    large_function_bytes: int = 10 * 1024 * 1024
    """A pickled function above this size warns, since it is sent to every worker."""

    max_frame_bytes: int = 512 * 1024 * 1024
    """A frame that announces more is refused and its connection closed. Bounds what a peer can make us allocate."""

    # --- the task path ----------------------------------------------------------------------------------------
    window_us: int = 1_000
    """Expected work, in µs, that an owner keeps in flight on one leased worker. Higher: fewer bubbles, but longer
    queues behind a task that turns out slow."""

    window_tasks: int = 1024
    """Most tasks in flight on one leased worker, however short they are."""

    flush_bytes: int = 64 * 1024
    """Pending bytes of a batch that make it leave at once."""

    flush_us: int = 1_000
    """Age at which a pending reply leaves, in µs."""

    handback_us: int = 5_000
    """A worker hands back the tasks queued behind one that has run this long, in µs."""

    watch_us: int = 2_000
    """How long a process's sockets may go unread while its threads run user code, before the service thread takes
    over. Lower: quicker service beside busy code, more wake-ups."""

    block_grace_us: int = 500
    """How long a worker waits in `get` before it lends its CPU to others. Lower: more traffic for short waits."""

    idle_lend_ms: Count = 50
    """A worker in which somebody waits for an object, but not inside `get` in the main thread (`await`, the `result()` of a future, a
    thread of the program's own), lends its CPU when its process has done nothing for so long; 0: never. Lower: quicker, more looks."""

    lease_idle_ms: int = 50
    """How long an owner keeps a lease with nothing to run before it gives it back; not at all while tasks of another shape of its own
    wait. Higher: quicker next task, longer waits for other owners."""

    lease_requests_per_shape: int = 16
    """Most lease requests that one owner has pending for one shape of resources."""

    fair_share_ms: int = 100
    """A lease older than this is asked back when another owner waits for its resources."""

    locality_bytes: int = 1024 * 1024
    """Stored arguments of a task of at least so many bytes decide in which node's queue it waits. Lower: more tasks go to their bytes, and
    share fewer leases with others."""

    max_retries: int = 3
    """Default retries of a task whose worker died (`SHOAL_MAX_RETRIES`); -1 is for ever."""

    # --- workers ----------------------------------------------------------------------------------------------
    worker_start_timeout_s: float = 60.0
    """How long a forked worker may take to register before it counts as failed."""

    idle_workers_per_cpu: float = 1.0
    """Idle workers kept per CPU; the others end after `idle_worker_s`."""

    idle_worker_s: float = 1.0
    """How long a surplus worker idles before it ends."""

    exit_grace_s: float = 2.0
    """How long a process may take to end when asked, before it is killed."""

    async_concurrency: int = 1000
    """Calls that an async actor runs at once unless it says otherwise."""

    # --- memory -----------------------------------------------------------------------------------------------
    memory_usage_threshold: Fraction = 0.95
    """Part of the memory of the machine, or of a control group, from which on the memory monitor of a node ends workers. Higher: more is
    used, and the kernel, which is less choosy, may be quicker."""

    memory_monitor_refresh_ms: Count = 250
    """How often the memory monitor looks; 0 turns it off. Higher: less work, and a quicker growth is noticed too late."""

    memory_limit_bytes: Count = 0
    """Memory that the workers of a node, with the object store, may use together, by the same threshold; 0: all that the machine or
    control group has. For machines that have other things to do. Costs a look at every process of the machine each time."""

    task_oom_retries: int = 15
    """How often a task is tried again whose worker was ended because memory was short, if it may be retried at all; these do not count as
    `max_retries`. -1 is for ever."""

    oom_retry_ms: int = 1_000
    """How long such a task waits before it is tried again the first time; twice as long each further time."""

    oom_retry_most_ms: int = 60_000
    """The longest such wait."""

    # --- object store -----------------------------------------------------------------------------------------
    store_fraction: Fraction = 0.3
    """Share of the machine's memory that the object store may take when `object_store_memory` is not given."""

    quota_chunk_bytes: int = 64 * 1024 * 1024
    """Bytes of store that a process draws from its node at a time. Higher: fewer requests, more unused share."""

    store_idle_s: float = 10.0
    """How long memory of dead objects is kept warm for the next ones, before it goes back to the system. Higher: objects that are made more
    rarely find memory that is quick to write to. Lower: the rest of the machine has it sooner."""

    store_full_timeout_s: float = 20.0
    """How long a creator waits for room before its object is made on disk, or, where that cannot be, before `ObjectStoreFullError`."""

    spill: bool = True
    """Whether objects are written to disk when the store is full. Without it, full means full: creators wait, and then fail."""

    spill_dir: str = ""
    """Where they are written: each session makes a folder of its own in this one. By default in the session's folder."""

    spill_remote: str = ""
    """Where spilled objects go on to when the disk is short: the URL of a folder, for `fsspec` (`pip install 'shoal[spill-remote]'`). Each
    session makes a folder of its own in this one. By default nowhere."""

    spill_local_bytes: Count = 0
    """Bytes of disk that spilled objects may take on a node, copies of objects of other nodes among them; 0: as many as
    `spill_disk_fraction` lets them. Lower: more goes on to `spill_remote`, and comes back from there; without that, creators wait."""

    spill_batch_bytes: Positive = 100 * 1024 * 1024
    """Bytes that a process is told to write at a time, but never more than an eighth of the store. Higher: fewer orders; lower: those
    who wait get their room sooner, and less is written than was needed."""

    spill_ask_ms: Count = 50
    """How long processes may take to say what they have idle before others are told to write to disk; who has not said anything by
    then is passed over. Higher: less is written beside processes that are slow to answer."""

    spill_order_s: float = 10.0
    """How long a process may write before it is not counted on any more, and others are told to."""

    spill_fallback_s: float = 1.0
    """How long a creator waits when nobody has anything that could be spilled, before its object is made on disk instead. Higher: more
    objects find memory after all."""

    spill_retry_s: float = 10.0
    """How long nothing is spilled after the disk took no more. Lower: room there is noticed sooner."""

    spill_disk_fraction: Fraction = 0.95
    """How full spilling may make the file system. Higher: more room, and less for everybody else on the machine."""

    inquiry_patience_s: float = 2.0
    """How long a process may take to say what it uses of what others have left, before those that cannot have heard of it are no longer
    waited for. Lower: one that is stopped holds up the memory of other jobs for less time; higher: fewer that are just slow are judged."""

    # --- objects of other nodes -------------------------------------------------------------------------------
    pull_inflight_bytes: int = 512 * 1024 * 1024
    """Most bytes that a node is getting from others at once, unless a single object is larger; never more than half of
    its store. Higher: more objects at once, and more of the store taken by what nobody can use yet."""

    pulls_at_once: int = 8
    """Most objects that a node is getting at once; it has a thread and a connection for each."""

    pull_tries: int = 3
    """How often in a row a node may fail to send a byte of an object before it is asked no more. The node where the object was made is
    asked for `node_timeout_s` at least, since by then it is known whether it has died."""

    pull_stall_s: float = 10.0
    """How long the other side of a transfer may send (or take) nothing before another source is tried. Lower: a node that hangs
    holds up others for less time, but a slow one is taken for one that hangs."""

    uploads_per_object: int = 3
    """How many nodes get the same object from one node at once; the others get it from those. Higher: shallower trees, and
    less bandwidth for each."""

    transfer_chunk_bytes: int = 4 * 1024 * 1024
    """Pieces in which objects travel. Higher: fewer system calls; lower: nodes further down a tree begin sooner."""

    transfer_checksums: bool = False
    """Whether each piece is sent with its CRC-32. TCP's own checksum lets one damaged packet in 65,536 through. It costs a pass over
    the bytes at either end, and `sendfile`."""

    bulk_idle_s: float = 10.0
    """How long a connection for objects is kept for the next one."""

    # --- control store ----------------------------------------------------------------------------------------
    storage_retry_s: float = 60.0
    """How long a storage that is away or full is tried again, before the control store ends. Meanwhile nothing changes in
    the cluster as a whole; what runs goes on. Higher: longer failures are survived, and noticed later."""

    storage_lease_s: float = 10.0
    """How long a control store leads, in Redis, unless it renews. Lower: a successor takes over sooner from one that died,
    but also from one that was only slow."""

    # --- nodes of a cluster -----------------------------------------------------------------------------------
    node_heartbeat_s: float = 1.0
    """How often a node and the control store tell each other that they live, when they have nothing else to say."""

    node_timeout_s: float = 10.0
    """A node of which nothing was heard for so long is dead, and its work is given to others. Lower: failures are noticed sooner,
    and a node that was only busy or stopped is given up as well."""

    node_reconnect_s: float = 0.25
    """How long a node may take to come back after its connection to the control store has closed, before it is dead."""

    explain_ms: int = 500
    """How long a request may wait for the cluster to change before its owner is told why. Lower: those who ask for what no node has hear
    sooner, and also those whose node only has not joined yet, or is not known everywhere."""

    control_retry_s: float = 60.0
    """How long a node tries to reach a control store that does not answer, before the node ends. Higher: a control store may take
    longer to be started again."""

    view_ms: int = 20
    """Least time between two batches of changed rows to one node, and between two rows of one node. Higher: fewer messages, older views.
    In a large cluster it is longer (`views_per_s`)."""

    views_per_s: Positive = 10_000
    """Most batches of changed rows to all nodes together in a second, and most rows from all of them: so many messages the control store
    deals with in half a second of one core, however many nodes there are. With n nodes the time between two batches to a node is n /
    `views_per_s` if that is more than `view_ms`: 20 ms up to 200 nodes, 100 ms for 1,000, one second for 10,000 (`view_s`,
    docs/scale.md). Higher: newer views in large clusters, and less of the control store for all else."""

    stream_window: int = 1024
    """Most numbered messages on their way between a node and the control store."""

    stream_backlog: int = 10_000
    """Events that wait for a node that does not take them; beyond it gets the newest state of each thing instead of its history."""

    orders_backlog: int = 1_000_000
    """A node that lets so many orders and answers wait is given up, and a node with so many unsent reports ends."""

    answers_unread_bytes: int = 128 * 1024 * 1024
    """A node that has not taken so many bytes of answers is refused more until it has, unless its question changes something. Higher:
    more and larger questions at once (lists of a large cluster, keys with large values), and more memory of the control store for a node
    that is slow."""

    ended_processes: int = 10_000
    """Ended workers and drivers of which the control store remembers the cause, at some 300 bytes each."""

    # --- ways between nodes -----------------------------------------------------------------------------------
    door_strangers: int = 1024
    """Most connections from other machines that have not proved the token yet: at a node's door, at the control store's, and again in each
    process to which the door leads. More wait in the kernel. Higher: more may connect at the same moment; lower: those who never prove
    it take fewer descriptors."""

    tls_cert: str = ""
    """Path of this node's certificate (PEM, with the chain up to the authority). With it, every TCP connection is in TLS; all nodes
    of a cluster must have it, or none."""

    tls_key: str = ""
    """Path of the certificate's private key (PEM, no passphrase)."""

    tls_ca: str = ""
    """Path of the certificate of the cluster's authority (PEM). Whoever shows a certificate of this authority may connect, and must
    prove the token all the same."""

    join_timeout_s: float = 10.0
    """How long `shoal start --address` tries to reach a control store that does not answer. Higher: nodes may be started that
    much earlier than the head."""

    # --- placement groups -------------------------------------------------------------------------------------
    group_prepare_timeout_s: float = 10.0
    """How long nodes may take to say that they have reserved a group's bundles, before all of them are released and asked anew."""

    group_retry_ms: int = 10
    """How soon a placement group that found no room is tried again, at first. Lower: less delay after something was
    released, more work while many groups wait."""

    group_retry_most_ms: int = 1_000
    """Longest pause between tries of a group whose nodes had less room than they had said."""

    groups_remembered: int = 1_000
    """Removed placement groups that tables still show."""

    # --- observation ------------------------------------------------------------------------------------------
    log_to_driver: bool = True
    """Whether what workers print is shown at the driver."""

    log_repeat_window_s: float = 5.0
    """Lines that other workers print too within this time are shown once and counted; 0 shows every line."""

    log_rotate_bytes: int = 64 * 1024 * 1024
    """A worker's log file is rotated at this size, keeping one older file."""

    record_call_sites: bool = False
    """Whether each object remembers the line of the program that put it or submitted its task, and when; for `shoal memory`. A
    microsecond or two for each, and 200 bytes; nothing while it is off."""

    task_events: int = 10_000
    """Finished tasks that each worker remembers for `timeline()`; 0 turns recording off."""


def view_s(config: Config, nodes: int) -> float:
    """Least time between two batches of changed rows to one node of so many, and between two rows of it."""
    return max(config.view_ms / 1_000, nodes / config.views_per_s)


TLS_SETTINGS: Final = ("tls_cert", "tls_key", "tls_ca")


def _parse(name: str, text: str, kind: Any) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        raise ValueError(f"{name}={text!r} is not a valid {plain.__name__}: {error}") from None


# Once, for the zygote and all its forks.
_HINTS: Final = get_type_hints(Config, include_extras=True)


_IN_INIT: Final = frozenset(
    {"num_cpus", "num_gpus", "object_spilling_directory", "object_store_memory", "resources"}
)
"""Options of `init` and `shoal start` that are no settings."""

_RAYS_NAMES: Final = {
    "automatic_object_spilling_enabled": "spill",
    "gcs_rpc_server_reconnect_timeout_s": "control_retry_s",
    "health_check_failure_threshold": "node_timeout_s",
    "health_check_period_ms": "node_heartbeat_s",
    "health_check_timeout_ms": "node_timeout_s",
    "idle_worker_killing_time_threshold_ms": "idle_worker_s",
    "local_fs_capacity_threshold": "spill_disk_fraction",
    "max_direct_call_object_size": "inline_limit_bytes",
    "max_grpc_message_size": "max_frame_bytes",
    "max_pending_lease_requests_per_scheduling_category": "lease_requests_per_shape",
    "min_spilling_size": "spill_batch_bytes",
    "num_heartbeats_timeout": "node_timeout_s",
    "num_workers_soft_limit": "idle_workers_per_cpu",
    "object_manager_default_chunk_size": "transfer_chunk_bytes",
    "object_manager_max_bytes_in_flight": "pull_inflight_bytes",
    "object_spilling_config": "spill_dir",
    "raylet_heartbeat_period_milliseconds": "node_heartbeat_s",
    "record_ref_creation_sites": "record_call_sites",
    "task_events_max_num_task_in_gcs": "task_events",
    "worker_register_timeout_seconds": "worker_start_timeout_s",
}
"""What is nearest here to a setting of Ray; units may differ, so nothing is taken over. (Some have the same name in both.)"""


def _unknown(name: str) -> str:
    """What to say of a setting that does not exist."""
    # Nobody else needs it: workers do not load it.
    import difflib

    if name in _IN_INIT:
        advice = (
            f"it is an option of its own: init({name}=…), `shoal start --{name.replace('_', '-')}`"
        )
    elif name in _RAYS_NAMES:
        here = _RAYS_NAMES[name]
        kind = _HINTS[here]
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        default = getattr(Config(), here)
        advice = f"what Ray calls so is nearest to {here} here ({plain.__name__}, {default!r} by default; see shoal.config)"
    elif near := difflib.get_close_matches(name, _HINTS, 3):
        advice = f"did you mean {' or '.join(near)}?"
    else:
        advice = f"the settings are: {', '.join(sorted(_HINTS))}"
    return f"_system_config has no setting {name!r}; {advice}"


def load_config(
    overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration from the environment and `overrides`.

    Raises:
        ValueError: an override that does not exist, or a value of the wrong type or out of bounds.
    """
    environ = os.environ if environ is None else environ
    hints = _HINTS
    fields: dict[str, Any] = {}
    for name, kind in hints.items():
        for variable in (f"SHOAL_{name.upper()}", f"SHOAL_{name}"):
            if (text := environ.get(variable)) is not None:
                fields[name] = _parse(variable, text, kind)
                break
    for name, value in (overrides or {}).items():
        if name not in hints:
            raise ValueError(_unknown(name))
        fields[name] = _parse(f"_system_config[{name!r}]", value, hints[name])
    return Config(**fields)
