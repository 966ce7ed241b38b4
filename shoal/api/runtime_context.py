"""`get_runtime_context()`: where the running code is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from shoal.api.groups import current_group
from shoal.ids import ActorID, JobID, NodeID, TaskID, WorkerID
from shoal.messages.node import UNIT
from shoal.runtime import current_process

if TYPE_CHECKING:
    from shoal.api.actors import ActorHandle
    from shoal.runtime.context import TaskContext
    from shoal.runtime.process import Process


class RuntimeContext:
    """Answers for the task, actor and process in which it is asked."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def _context(self) -> TaskContext:
        return self._process.context()

    def get_job_id(self) -> str:
        """Hex id of the job."""
        return JobID(self._process.job_id).hex()

    def get_node_id(self) -> str:
        """Hex id of the node."""
        return NodeID(self._process.node_id).hex()

    def get_worker_id(self) -> str:
        """Hex id of the process."""
        worker_id = self._process.worker_id or self._process.root.task_id
        return WorkerID(worker_id).hex()

    def get_task_id(self) -> str | None:
        """Hex id of the running task; None in a driver."""
        context = self._context()
        return None if context.kind == "driver" else TaskID(context.task_id).hex()

    def get_task_name(self) -> str | None:
        """Name of the running task; None in a driver."""
        context = self._context()
        return None if context.kind == "driver" else context.name

    def get_task_function_name(self) -> str | None:
        """Name of the running function; None in a driver."""
        context = self._context()
        return None if context.kind == "driver" else context.function_name

    def get_actor_id(self) -> str | None:
        """Hex id of the actor; None elsewhere."""
        actor_id = self._context().actor_id
        return None if actor_id is None else ActorID(actor_id).hex()

    def get_actor_name(self) -> str | None:
        """Name of the actor ("" if it has none); None elsewhere."""
        host = self._process.host
        return None if host is None or self._context().actor_id is None else host.spec.name

    @property
    def namespace(self) -> str:
        """The job's namespace."""
        return self._process.namespace

    @property
    def current_actor(self) -> ActorHandle:
        """A handle on the actor in which this is asked.

        Raises:
            RuntimeError: this is not an actor.
        """
        from shoal.api.actors import handle_of
        from shoal.messages.node import ActorInfo

        host = self._process.host
        if host is None or self._context().actor_id is None:
            raise RuntimeError(
                "current_actor is for methods of actors; this code runs in a "
                + self._context().kind
            )
        spec = host.spec
        info = ActorInfo(
            spec.actor_id,
            spec.class_name,
            spec.owner,
            spec.methods,
            spec.max_task_retries,
            spec.max_pending_calls,
            spec.is_async,
        )
        entry = None
        if not spec.detached:
            entry = self._process.borrow_actor(spec.actor_id, spec.owner)
        return handle_of(self._process, info, entry)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor has been restarted."""
        host = self._process.host
        return host is not None and host.incarnation > 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor holds, by resource."""
        shape = self._process.assigned_shape
        return {} if shape is None else {name: amount / UNIT for name, amount in shape.resources}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Ids of the accelerators assigned, by kind."""
        return {"GPU": list(self._process.gpu_ids)}

    def get_runtime_env_string(self) -> str:
        """The runtime environment as JSON."""
        shape = self._process.assigned_shape
        return (shape.env if shape is not None else self._process.env) or "{}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment."""
        env: dict[str, Any] = json.loads(self.get_runtime_env_string())
        return env

    @property
    def gcs_address(self) -> str:
        """Where the control store is reached."""
        return f"{self._process.registered.session_dir}/node.sock"

    def get_node_labels(self) -> dict[str, str]:
        """Labels of the node."""
        from shoal.api.cluster import node_rows

        for row in node_rows(self._process):
            if row.node_id == self._process.node_id:
                return dict(row.labels)
        return {}

    def get_placement_group_id(self) -> str | None:
        """Hex id of the placement group; None outside of one."""
        bundle = current_group(self._process)
        return None if bundle is None else bundle.group_id.hex()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what is submitted from here runs in the same placement group, unless it says otherwise."""
        return self._process.captured is not None

    def get_session_name(self) -> str:
        """Name of the session."""
        return self._process.registered.session

    def get_temp_dir(self) -> str:
        """The folder that holds the sessions' folders."""
        return os.path.dirname(self._process.registered.session_dir)

    def is_canceled(self) -> bool:
        """Whether somebody asked for the running task to end."""
        return self._context().cancelled


def get_runtime_context() -> RuntimeContext:
    """Where the running code is: its job, node, task and actor."""
    return RuntimeContext(current_process.require())


def get_gpu_ids() -> list[int | str]:
    """The GPUs assigned to the running task or actor."""
    ids = current_process.require().gpu_ids
    return [int(name) if name.isdigit() else name for name in ids]
