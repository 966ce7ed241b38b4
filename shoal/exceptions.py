"""shoal's exceptions under their own names, and under the names that Ray programs catch."""

from shoal.api.actors import ActorClassInheritanceException
from shoal.errors import *  # noqa: F403 - this module is exactly that set of names, and aliases
from shoal.errors import (
    ActorDiedError,
    ActorError,
    ActorUnavailableError,
    InternalError,
    ObjectLostError,
    ShoalError,
    StreamEndError,
    TaskError,
    UnserializableError,
)

RayError = ShoalError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = InternalError
ObjectRefStreamEndOfStreamError = StreamEndError
UnserializableException = UnserializableError

__all__ = [
    "ActorClassInheritanceException",
    "ActorDiedError",
    "ActorError",
    "ActorUnavailableError",
    "InternalError",
    "ObjectLostError",
    "ObjectRefStreamEndOfStreamError",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ShoalError",
    "StreamEndError",
    "TaskError",
    "UnserializableError",
    "UnserializableException",
]
