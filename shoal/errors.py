"""Every exception that shoal raises, and whose fault each one reports.

::

    ShoalError
    ├── TaskError                      the user's code raised; also an instance of the user's own exception type
    ├── TaskCancelledError             somebody cancelled it
    ├── WorkerCrashedError             the process that ran it died
    ├── ActorError
    │   ├── ActorDiedError             the actor is gone for good, with the reason
    │   └── ActorUnavailableError      the actor cannot be reached now; the call may or may not have run
    ├── GetTimeoutError                (TimeoutError) a `get` ran out of time
    ├── ObjectLostError
    │   ├── OwnerDiedError             the process that owned the object died
    │   ├── ObjectFreedError           the object was freed before it was asked for
    │   └── ObjectReconstructionFailedError
    ├── ObjectStoreFullError           shared memory is full and stayed full
    ├── OutOfDiskError                 the disk for spilled objects is full
    ├── SpillTargetError               what was spilled is at a remote target that cannot be reached now
    ├── OutOfMemoryError               the memory monitor ended the worker
    ├── NodeDiedError                  a node is gone
    ├── UnschedulableError             no node will ever satisfy the request
    │   ├── TaskUnschedulableError
    │   │   └── TaskPlacementGroupRemoved
    │   └── ActorUnschedulableError
    │       └── ActorPlacementGroupRemoved
    ├── RuntimeEnvSetupError           the environment of a task or actor could not be made
    ├── PendingCallsLimitExceeded      too many calls wait for one actor
    ├── ActorAlreadyExistsError        (ValueError) the name is taken
    ├── ActorHandleNotFoundError       (ValueError) the handle belongs to another session
    ├── UnserializableError            (TypeError) a value cannot be sent
    ├── ExceptionStandIn               an exception of the user's whose type cannot be rebuilt here (`serial.exceptions`)
    ├── DeserializationError           a value arrived but could not be rebuilt
    │   └── CorruptBlockError          its bytes in shared memory are not those of a value (`serial.layout`)
    ├── StreamEndError                 a generator's stream has ended
    ├── AuthenticationError            the peer does not hold the session's token
    ├── ProtocolError                  a peer sent what no peer may send
    ├── NotInitializedError            shoal is not running in this process
    └── InternalError                  our bug

`shoal.exceptions` adds the names that Ray programs use.
"""

from __future__ import annotations

from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any


class ShoalError(Exception):
    """Base of every exception that shoal raises itself."""


class TaskError(ShoalError):
    """A task or an actor's method raised.

    `shoal.get` raises an instance of a class that inherits from this one *and* from the type of the original
    exception, so that `except ValueError` works across processes.

    Attributes:
        function_name: The function or method that raised.
        traceback_str: The remote traceback, without shoal's own frames.
        cause: The original exception.
        pid: Process that ran it.
        ip: Address of its node.
        actor_repr: `repr` of the actor, if it was one.
        actor_id: Hex id of the actor, if it was one.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        pid: int = 0,
        ip: str = "",
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        # Not super().__init__: in the combined class the next in line is the user's type with its own signature.
        Exception.__init__(self, function_name, traceback_str, cause, pid, ip, actor_repr, actor_id)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.actor_id = actor_id

    def __str__(self) -> str:
        where = f"pid={self.pid}" + (f", ip={self.ip}" if self.ip else "")
        who = f"{self.actor_repr}.{self.function_name}" if self.actor_repr else self.function_name
        return f"{who}() raised in another process ({where}):\n{self.traceback_str.rstrip()}"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (
            self.function_name,
            self.traceback_str,
            self.cause,
            self.pid,
            self.ip,
            self.actor_repr,
            self.actor_id,
        )
        return (TaskError if type(self) is TaskError else _combined_task_error), fields

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of both `TaskError` and the type of its cause."""
        if isinstance(self.cause, type(self)) or not isinstance(self.cause, Exception):
            return self
        return _combined_task_error(
            self.function_name,
            self.traceback_str,
            self.cause,
            self.pid,
            self.ip,
            self.actor_repr,
            self.actor_id,
        )


_combined_classes: dict[type[BaseException], type[TaskError] | None] = {}


def _combined_class(cause_type: type[BaseException]) -> type[TaskError] | None:
    """The class that is both `TaskError` and `cause_type`; None where Python cannot make one."""
    known = _combined_classes.get(cause_type, False)
    if known is not False:
        return known  # type: ignore[return-value]  # narrowed by the sentinel

    def __getattr__(self: TaskError, name: str) -> Any:  # noqa: N807 - it becomes a method
        # `cause` itself is missing only while the object is half made: no recursion then.
        if name in {"cause", "__cause__"}:
            raise AttributeError(name)
        return getattr(self.cause, name)

    namespace = {
        "__init__": TaskError.__init__,
        "__str__": TaskError.__str__,
        "__reduce__": TaskError.__reduce__,
        "__getattr__": __getattr__,
        "__module__": TaskError.__module__,
        "__doc__": f"A remote {cause_type.__name__}.",
    }
    try:
        combined: type[TaskError] | None = type(
            f"TaskError({cause_type.__name__})", (TaskError, cause_type), namespace
        )
    except TypeError:
        # A final type or one with a layout of its own: the plain TaskError carries it as `.cause`.
        combined = None
    _combined_classes[cause_type] = combined
    return combined


def _combined_task_error(
    function_name: str,
    traceback_str: str,
    cause: BaseException,
    pid: int,
    ip: str,
    actor_repr: str | None,
    actor_id: str | None,
) -> TaskError:
    fields = (function_name, traceback_str, cause, pid, ip, actor_repr, actor_id)
    cls = None if isinstance(cause, TaskError) else _combined_class(type(cause))
    if cls is None:
        return TaskError(*fields)
    try:
        # Groups insist on their message and members at creation.
        arguments = (
            (cause.message, cause.exceptions) if isinstance(cause, BaseExceptionGroup) else ()
        )
        error = cls.__new__(cls, *arguments)
        TaskError.__init__(error, *fields)
        _copy_members(cause, error)
    except Exception:  # noqa: BLE001 - the user's type may refuse in any way; the plain error still tells all
        return TaskError(*fields)
    return error


def _copy_members(cause: BaseException, error: BaseException) -> None:
    """Set what the user's type keeps outside of `__dict__` (`OSError.errno` and the like)."""
    for cls in type(cause).__mro__:
        if cls in {Exception, BaseException, object}:
            continue
        for name, member in vars(cls).items():
            if name.startswith("__") or not isinstance(
                member, MemberDescriptorType | GetSetDescriptorType
            ):
                continue
            try:
                setattr(error, name, getattr(cause, name))
            except (AttributeError, TypeError):
                # Read-only, or not set in the cause either.
                continue


class TaskCancelledError(ShoalError):
    """The task was cancelled before it produced a value."""

    def __init__(
        self, message: str = "The task was cancelled.", task_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.task_id = task_id


class WorkerCrashedError(ShoalError):
    """The process that ran the task died; the message says how and how often it was tried."""


class ActorError(ShoalError):
    """An actor could not serve a call.

    Attributes:
        actor_id: Hex id of the actor, when known.
        actor_init_failed: Whether its `__init__` raised.
    """

    def __init__(
        self, message: str = "", actor_id: str | None = None, actor_init_failed: bool = False
    ) -> None:
        super().__init__(message)
        self.actor_id = actor_id
        self.actor_init_failed = actor_init_failed
        self.preempted = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.actor_id, self.actor_init_failed)


class ActorDiedError(ActorError):
    """The actor is dead and will not come back."""


class ActorUnavailableError(ActorError):
    """The actor cannot be reached right now; the call may or may not have run."""


class GetTimeoutError(ShoalError, TimeoutError):
    """`get` ran out of time; the message says what it was waiting for."""


class ObjectLostError(ShoalError):
    """The object's value is gone.

    Attributes:
        object_ref_hex: The object's id.
    """

    def __init__(self, message: str = "", object_ref_hex: str | None = None) -> None:
        super().__init__(message)
        self.object_ref_hex = object_ref_hex

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.object_ref_hex)


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died."""


class ObjectFreedError(ObjectLostError):
    """The object was freed before this process asked for it."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and could not be made again."""


class ObjectStoreFullError(ShoalError):
    """Shared memory is full, and stayed full for as long as a creator may wait."""


class OutOfDiskError(ObjectStoreFullError):
    """Shared memory is full, and so is the disk that takes what it has no room for."""


class SpillTargetError(ShoalError):
    """An object was spilled to a remote target that cannot be reached now; it is not lost."""


class OutOfMemoryError(ShoalError):
    """The worker that ran the task was ended, each time that it was tried, because its node was running out of memory; the message says
    how much it had, and who else."""


class NodeDiedError(ShoalError):
    """The node that ran the task is gone."""


class UnschedulableError(ShoalError):
    """No node will ever satisfy what the task or actor asks for."""


class TaskUnschedulableError(UnschedulableError):
    """The task can never be placed."""


class ActorUnschedulableError(UnschedulableError):
    """The actor can never be placed."""


class TaskPlacementGroupRemoved(TaskUnschedulableError):  # noqa: N818 - Ray's name, which programs catch
    """The placement group that the task was to run in, or ran in, was removed."""


class ActorPlacementGroupRemoved(ActorUnschedulableError):  # noqa: N818 - Ray's name, which programs catch
    """The placement group that the actor was in, or was to be in, was removed."""


class RuntimeEnvSetupError(ShoalError):
    """The runtime environment of a task or actor could not be made."""


class PendingCallsLimitExceeded(ShoalError):  # noqa: N818 - Ray's name, which programs catch
    """More calls wait for the actor than its `max_pending_calls` allows."""


class ActorAlreadyExistsError(ShoalError, ValueError):
    """An actor of that name lives in the namespace already."""


class ActorHandleNotFoundError(ShoalError, ValueError):
    """The actor handle belongs to another session."""


class UnserializableError(ShoalError, TypeError):
    """A value cannot be sent to another process; the message says which part of it, and where it sits."""


class DeserializationError(ShoalError):
    """A value arrived but could not be rebuilt in this process; `__cause__` says why."""


class StreamEndError(ShoalError):
    """A generator's stream of objects has ended."""


class AuthenticationError(ShoalError):
    """The peer does not hold the session's token, or speaks another version."""


class ProtocolError(ShoalError):
    """A peer sent bytes or a message that the protocol does not allow."""


class NotInitializedError(ShoalError):
    """shoal is not running in this process; call `shoal.init()`."""


class InternalError(ShoalError):
    """A defect in shoal itself; please report it with the text."""
