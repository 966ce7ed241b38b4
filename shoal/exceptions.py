"""shoal's exceptions under their own names, and under the names that Ray programs catch.

What Ray tells apart and shoal does not is an alias of what shoal raises in that place, so that `except` clauses keep working.
"""

from shoal.api.actors import ActorClassInheritanceException
from shoal.errors import *  # noqa: F403 - this module is exactly that set of names, and aliases
from shoal.errors import (
    ActorError,
    InternalError,
    NodeDiedError,
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
LocalRayletDiedError = NodeDiedError
ObjectFetchTimedOutError = ObjectLostError
ObjectRefStreamEndOfStreamError = StreamEndError
UnserializableException = UnserializableError


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """What Ray raises when its own counts are wrong; programs may name it. shoal raises `ObjectLostError`."""


__all__ = ["ActorClassInheritanceException", "ReferenceCountingAssertionError"]
