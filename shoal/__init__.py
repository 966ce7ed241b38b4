"""shoal: a distributed runtime for Python.

Tasks, actors and objects on one dynamic task graph, with the names and meanings of Ray Core::

    import shoal


    @shoal.remote
    def square(x):
        return x * x


    print(shoal.get([square.remote(i) for i in range(4)]))
"""

import cloudpickle

from shoal import actor, dag, exceptions, util
from shoal.api.actors import ActorClass, ActorHandle, ActorMethod, exit_actor, method
from shoal.api.cluster import available_resources, cluster_resources, nodes, timeline
from shoal.api.functions import RemoteFunction, remote
from shoal.api.logging_config import LoggingConfig
from shoal.api.objects import cancel, get, get_actor, kill, put, wait
from shoal.api.runtime_context import RuntimeContext, get_gpu_ids, get_runtime_context
from shoal.api.session import RayContext, init, is_initialized, shutdown
from shoal.errors import ShoalError
from shoal.ids import (
    ActorClassID,
    ActorID,
    ClusterID,
    FunctionID,
    JobID,
    NodeID,
    ObjectID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from shoal.runtime.refs import ObjectRef
from shoal.runtime.streams import ObjectRefGenerator
from shoal.version import __version__

__all__ = [
    "ActorClass",
    "ActorClassID",
    "ActorHandle",
    "ActorID",
    "ActorMethod",
    "ClusterID",
    "FunctionID",
    "JobID",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "RayContext",
    "RemoteFunction",
    "RuntimeContext",
    "ShoalError",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "available_resources",
    "cancel",
    "cloudpickle",
    "cluster_resources",
    "dag",
    "exceptions",
    "exit_actor",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "timeline",
    "util",
    "wait",
]
