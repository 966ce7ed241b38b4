"""The public names that programs of Ray Core use, and identifiers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import shoal
from shoal import exceptions

pytestmark = pytest.mark.usefixtures("shared_cluster")

# fmt: off
NAMES = (
    "init", "shutdown", "is_initialized", "remote", "method", "get", "put", "wait", "kill",
    "cancel", "get_actor", "nodes", "cluster_resources", "available_resources", "timeline",
    "get_gpu_ids", "get_runtime_context", "actor", "exceptions", "cloudpickle", "LoggingConfig",
    "ObjectRef", "ObjectRefGenerator", "ActorID", "NodeID", "JobID", "TaskID", "WorkerID",
    "FunctionID", "UniqueID", "ObjectID", "ClusterID", "ActorClassID", "PlacementGroupID",
    "__version__",
)
# fmt: on

ACTOR_NAMES = ("ActorClass", "ActorHandle", "ActorMethod", "exit_actor")

# fmt: off
EXCEPTIONS = (
    "RayError", "RayTaskError", "RayActorError", "ActorDiedError", "ActorUnavailableError",
    "WorkerCrashedError", "TaskCancelledError", "GetTimeoutError", "ObjectLostError",
    "ObjectFetchTimedOutError", "OwnerDiedError", "ObjectFreedError",
    "ObjectReconstructionFailedError", "ReferenceCountingAssertionError", "OutOfMemoryError",
    "ObjectStoreFullError", "OutOfDiskError", "NodeDiedError", "LocalRayletDiedError",
    "RaySystemError", "RuntimeEnvSetupError", "TaskUnschedulableError", "ActorUnschedulableError",
    "TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved", "PendingCallsLimitExceeded",
    "AuthenticationError", "UnserializableException", "ActorAlreadyExistsError",
    "ActorHandleNotFoundError", "ObjectRefStreamEndOfStreamError",
)
# fmt: on

OWN_EXCEPTIONS = {
    "ShoalError": "RayError",
    "TaskError": "RayTaskError",
    "ActorError": "RayActorError",
    "InternalError": "RaySystemError",
    "UnserializableError": "UnserializableException",
    "StreamEndError": "ObjectRefStreamEndOfStreamError",
}

BUILTIN_BASES = {
    "GetTimeoutError": TimeoutError,
    "ActorAlreadyExistsError": ValueError,
    "ActorHandleNotFoundError": ValueError,
    "ReferenceCountingAssertionError": AssertionError,
}

FAMILIES = {
    "RayActorError": ("ActorDiedError", "ActorUnavailableError"),
    "ObjectLostError": (
        "ObjectFetchTimedOutError",
        "OwnerDiedError",
        "ObjectFreedError",
        "ObjectReconstructionFailedError",
    ),
}

IDS = ("ActorID", "NodeID", "JobID", "TaskID", "WorkerID", "FunctionID", "UniqueID", "ObjectID")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_package(name: str) -> None:
    assert hasattr(shoal, name)


@pytest.mark.parametrize("name", ACTOR_NAMES)
def test_names_of_the_actor_module(name: str) -> None:
    assert hasattr(shoal.actor, name)


def test_references_can_be_named_with_their_type() -> None:
    assert shoal.ObjectRef[int] is not None


# --- exceptions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_every_exception_is_a_shoal_error(name: str) -> None:
    assert issubclass(getattr(exceptions, name), shoal.ShoalError)


@pytest.mark.parametrize("name", OWN_EXCEPTIONS)
def test_exceptions_with_two_names(name: str) -> None:
    assert getattr(exceptions, name) is getattr(exceptions, OWN_EXCEPTIONS[name])


@pytest.mark.parametrize("name", BUILTIN_BASES)
def test_exceptions_that_are_builtin_ones_too(name: str) -> None:
    assert issubclass(getattr(exceptions, name), BUILTIN_BASES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_exceptions(name: str) -> None:
    for member in FAMILIES[name]:
        assert issubclass(getattr(exceptions, member), getattr(exceptions, name))


# --- identifiers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_identifiers(name: str) -> None:
    kind: Any = getattr(shoal, name)
    nil = kind.nil()
    assert nil.is_nil()
    assert len(nil.binary()) == nil.size()
    one = kind.from_binary(bytes(range(nil.size())))
    assert not one.is_nil()
    assert one.hex() == bytes(range(nil.size())).hex()
    assert kind.from_hex(one.hex()) == one
    assert hash(kind.from_hex(one.hex())) == hash(one)
    assert one != nil
    assert one.hex() in repr(one)
    assert pickle.loads(pickle.dumps(one)) == one


def test_an_identifier_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError):
        shoal.NodeID(b"short")


def test_a_job_is_also_a_number() -> None:
    assert shoal.JobID.from_int(7).int() == 7


def test_the_owner_of_a_reference() -> None:
    @shoal.remote
    def make() -> list[Any]:
        return [shoal.put(1)]

    mine, [others] = shoal.put(1), shoal.get(make.remote(), timeout=30)
    assert mine.owner_address() != others.owner_address()
    assert mine.owner_address() == shoal.put(2).owner_address()
    assert isinstance(mine.call_site(), str | bytes)
