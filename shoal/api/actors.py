"""Actor classes, handles and methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from shoal.api.dag import ClassMethodNode, ClassNode
from shoal.api.functions import launch, register
from shoal.api.options import STREAMING, ActorOptions, MethodOptions, actor_options, method_options
from shoal.api.signatures import Row, Signature
from shoal.core.tasks import Task
from shoal.errors import ActorHandleNotFoundError, NotInitializedError
from shoal.ids import ActorID, return_id
from shoal.messages.node import ActorInfo, ActorSpec
from shoal.runtime import current_process
from shoal.runtime.outside import warn_once
from shoal.runtime.reentry import do_later, is_reentered
from shoal.runtime.values import wire_args
from shoal.serial.hooks import register_rebuilder, register_ref_type
from shoal.worker.invocation import ActorExit

if TYPE_CHECKING:
    from shoal.core.calls import ActorCalls
    from shoal.core.references import Entry
    from shoal.runtime.process import Process

F = TypeVar("F", bound=Callable[..., Any])

_METHOD_OPTIONS = "__shoal_method_options__"
_SPECIAL_METHODS = ("__ray_ready__", "__ray_call__", "__ray_terminate__")
_PLAIN = MethodOptions()


class ActorClassInheritanceException(TypeError):  # noqa: N818 - Ray's name, which programs catch
    """A class inherits from an actor class instead of from the plain class under it."""


class ClassDescription(msgspec.Struct, array_like=True):
    """What handles know of a class: its methods and their options, and whether its calls may overtake each other."""

    methods: dict[str, MethodOptions]
    out_of_order: bool
    signatures: dict[str, list[Row] | None]


class Description:
    """A `ClassDescription` in use: encoded once, signatures made when they are first needed."""

    __slots__ = ("_signatures", "class_name", "content", "encoded", "methods", "out_of_order")

    def __init__(self, content: ClassDescription, encoded: bytes, class_name: str) -> None:
        self.content = content
        self.encoded = encoded
        self.class_name = class_name
        self.methods = content.methods
        self.out_of_order = content.out_of_order
        self._signatures: dict[str, Signature] = {}

    def check(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that a method cannot take.

        Raises:
            TypeError: as calling it would.
        """
        signature = self._signatures.get(method)
        if signature is None:
            rows = self.content.signatures.get(method)
            signature = self._signatures[method] = Signature(rows, f"{self.class_name}.{method}")
        signature.check(args, kwargs)


def method(*args: Any, **options: Any) -> Callable[[F], F]:
    """Set the default options of an actor's method: `@method(num_returns=2)`.

    Raises:
        ValueError: an option that does not exist, or a value that it cannot have.
        TypeError: it was used without options.
    """
    if args or not options:
        raise TypeError("@method takes options by name, such as @method(num_returns=2)")
    checked = method_options(options)

    def mark(function: F) -> F:
        setattr(function, _METHOD_OPTIONS, checked)
        return function

    return mark


def exit_actor() -> NoReturn:
    """End the actor whose method runs now. Calls that wait for it fail with `ActorDiedError`.

    Raises:
        TypeError: this is not an actor.
    """
    current_process.refuse_forked()
    process = current_process.process
    if process is None or process.context().actor_id is None:
        raise TypeError("exit_actor() must be called in a method of an actor")
    raise ActorExit


class ActorClass:
    """A class whose instances are actors. Made by `shoal.remote`."""

    def __init__(
        self, cls: type, options: dict[str, Any], described: Described | None = None
    ) -> None:
        self._cls = cls
        self._options = options
        self._name = cls.__qualname__
        self._checked: ActorOptions = actor_options(options, self._name)
        # While a class that makes actors of itself is unpickled, it is not whole yet: what is known of it comes along.
        self._described = described or _describe(cls, self._checked)
        self._description = _description_of(self._described.encoded, self._name)
        self.__ray_actor_class__ = cls
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self._name} is an actor class: make an actor with {self._name}.remote(…); "
            f"{self._name}.__ray_actor_class__ is the class itself"
        )

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"a class cannot inherit from the actor class {self._name}; let it inherit from the plain class, and make "
            "both remote: `Actor = shoal.remote(Plain)`"
        )

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options.

        Raises:
            ValueError: an option that does not exist or cannot be changed here.
        """
        if "concurrency_groups" in options:
            raise ValueError(
                "concurrency_groups cannot be set by .options(): methods are assigned to them in the class; use "
                "@remote(concurrency_groups=…)"
            )
        return ActorClass(self._cls, {**self._options, **options})

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> ActorHandle:
        """`options(**options).remote(*args, **kwargs)`, as libraries call it."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor; returns at once, with a handle that can be called.

        Raises:
            TypeError: `__init__` does not take these arguments.
            ActorAlreadyExistsError: an actor of that name exists (`get_if_exists` would return it).
        """
        process = current_process.require()
        Signature(self._described.init, self._name).check(args, kwargs)
        options = self._checked
        # First, as it may be refused: what is packed may lie in shared memory already.
        code = register(process, self._cls, self._name)
        packed, deps, holds, _kept = process.submissions.pack_args(
            args, kwargs, f"{self._name}.__init__"
        )
        here = partial(process.shape_here, capturable=options.capturable, inherits=options.inherits)
        spec = ActorSpec(
            actor_id=process.ids.task_id(),
            class_name=self._name,
            code_id=code.function_id,
            code=code.code,
            args=wire_args(packed),
            deps=[],
            shape=here(options.shape),
            placement_shape=here(options.placement_shape),
            owner=process.address,
            name=options.name,
            namespace=options.namespace or process.namespace,
            detached=options.detached,
            max_restarts=options.max_restarts,
            max_task_retries=options.max_task_retries,
            max_concurrency=options.max_concurrency,
            concurrency_groups=options.concurrency_groups,
            method_groups=self._described.groups,
            out_of_order=self._description.out_of_order,
            max_pending_calls=options.max_pending_calls,
            is_async=self._described.is_async,
            methods=self._described.encoded,
        )
        if options.name or options.detached:
            info, entry = process.actors.create_named(spec, deps, holds, options.get_if_exists)
            return handle_of(process, info, entry)
        entry = process.actors.create(spec, deps, holds)
        return ActorHandle(
            process,
            spec.actor_id,
            self._description,
            spec.max_task_retries,
            spec.max_pending_calls,
            entry,
        )

    def bind(self, *args: Any, **kwargs: Any) -> ClassNode:
        """An actor for later: a node of a graph, whose methods can be bound (see `shoal.dag`)."""
        return ClassNode(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<ActorClass {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options, self._described)


class Described(msgspec.Struct, frozen=True):
    """What is found out about a class when it is made an actor class.

    Attributes:
        encoded: Its `ClassDescription`.
        is_async: Whether its actors run on a loop.
        groups: The concurrency groups of its methods.
        init: What `__init__` takes.
    """

    encoded: bytes
    is_async: bool
    groups: dict[str, str]
    init: list[Row] | None


def _describe(cls: type, options: ActorOptions) -> Described:
    methods: dict[str, MethodOptions] = {}
    signatures: dict[str, list[Row] | None] = {}
    groups: dict[str, str] = {}
    is_async = False
    for name, function in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        marked = getattr(function, _METHOD_OPTIONS, _PLAIN)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            is_async = True
        generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if generates and marked.num_returns is None:
            marked = msgspec.structs.replace(marked, num_returns=STREAMING)
        if marked.concurrency_group:
            if marked.concurrency_group not in options.concurrency_groups:
                raise ValueError(
                    f"{cls.__qualname__}.{name} is in the concurrency group {marked.concurrency_group!r}, which "
                    f"@remote(concurrency_groups=…) does not define; it has {sorted(options.concurrency_groups)}"
                )
            groups[name] = marked.concurrency_group
        methods[name] = marked
        static = isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
        signatures[name] = Signature.of(function, name, skip_self=not static).rows
    threads = options.max_concurrency > 1 or bool(options.concurrency_groups)
    out_of_order = (is_async or threads) if options.out_of_order is None else options.out_of_order
    content = ClassDescription(methods, out_of_order, signatures)
    init = Signature.of(cls, cls.__qualname__).rows
    return Described(msgspec.msgpack.encode(content), is_async, groups, init)


class ActorHandle:
    """A handle on an actor: its methods are called with `.remote()`. Pass it wherever you like.

    The actor ends when its last handle is gone (detached actors, and those found by name, do not count handles).
    """

    __slots__ = (
        "__weakref__",
        "_actor_id_bytes",
        "_description",
        "_drop",
        "_life",
        "_link",
        "_max_pending_calls",
        "_max_task_retries",
        "_process",
    )

    def __init__(
        self,
        process: Process,
        actor_id: bytes,
        description: Description,
        max_task_retries: int,
        max_pending_calls: int,
        entry: Entry | None,
    ) -> None:
        self._process = process
        self._actor_id_bytes = actor_id
        self._description = description
        self._max_task_retries = max_task_retries
        self._max_pending_calls = max_pending_calls
        self._life = entry
        self._drop = process.drop
        self._link: ActorCalls | None = None

    def __getattr__(self, name: str) -> ActorMethod:
        if name not in self._description.methods and name not in _SPECIAL_METHODS:
            raise AttributeError(
                f"actor class {self._description.class_name} has no method {name!r}"
            )
        return ActorMethod(self, name, None)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self._description.methods]

    def __del__(self) -> None:
        try:
            if self._life is not None:
                self._drop(self._life)
        except AttributeError:
            # Never completely made: there is nothing to count.
            return

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._actor_id_bytes)

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._actor_id_bytes)

    @property
    def _owner(self) -> str:
        """The process that made the actor, "" if it was this one, or if nobody's end is the actor's."""
        return "" if self._life is None else self._life.owner

    def _connect(self) -> tuple[Process, ActorCalls]:
        """The runtime and the record of calls, once the handle is known to belong to this session."""
        process = current_process.process
        if process is not self._process:
            if process is None:
                current_process.refuse_forked()
                raise NotInitializedError("shoal is not running in this process any more")
            raise ActorHandleNotFoundError(
                f"the handle of actor {self._description.class_name} belongs to a session that was shut down; create the actor again"
            )
        link = self._link
        if link is None:
            owner = self._owner
            reentered = is_reentered(process)
            with process.lock:
                link = self._link = process.actors.link(
                    self._actor_id_bytes,
                    self._description.class_name,
                    self._description.out_of_order,
                )
                if not reentered:
                    process.actors.watch(link, owner)
            if reentered:
                do_later(process, "a call", partial(process.actors.watch_now, link, owner))
        return process, link

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id_bytes == self._actor_id_bytes

    def __hash__(self) -> int:
        return hash(self._actor_id_bytes)

    def __repr__(self) -> str:
        return f"Actor({self._description.class_name}, {self._actor_id_bytes.hex()})"

    def __copy__(self) -> ActorHandle:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> ActorHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As for references, shoal's own pickler does not come here.
        if self._life is not None:
            warn_once(
                repr(self),
                "the actor ends with the last handle that shoal counts, and calls by the one in the pickle then raise ActorDiedError",
                "Pass handles as arguments, return values or inside objects instead, or name the actor and use get_actor()",
            )
        return reduce_handle(self)


class ActorMethod:
    """A method of an actor, ready to be called with `.remote()`."""

    __slots__ = ("_handle", "_name", "_options")

    def __init__(self, handle: ActorHandle, name: str, options: MethodOptions | None) -> None:
        self._handle = handle
        self._name = name
        self._options = options

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self._name}() is a method of an actor: call it with .{self._name}.remote(…), which returns a reference at once"
        )

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options.

        Raises:
            ValueError: an option that does not exist, or a value that it cannot have.
        """
        default = self._options or self._handle._description.methods.get(self._name, _PLAIN)
        checked = method_options(options)
        changes = {
            name: getattr(checked, _FIELDS.get(name, name)) for name in options if name in _SET
        }
        renamed = {_FIELDS.get(name, name): value for name, value in changes.items()}
        return ActorMethod(self._handle, self._name, msgspec.structs.replace(default, **renamed))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns at once. See `RemoteFunction.remote` for what comes back.

        Raises:
            UnserializableError: an argument cannot be sent.
            PendingCallsLimitExceeded: too many calls wait already (`max_pending_calls`).
        """
        handle = self._handle
        process, link = handle._connect()
        handle._description.check(self._name, args, kwargs)
        options = self._options
        if options is None:
            options = handle._description.methods.get(self._name, _PLAIN)
        if handle._max_pending_calls >= 0:
            process.actors.check_limit(link, handle._max_pending_calls)
        retries = options.max_task_retries
        if retries is None:
            retries = handle._max_task_retries
        if options is _PLAIN or options == _PLAIN:
            return process.submissions.submit_call(
                link, self._name, args, kwargs, retries, handle._life
            )
        task = Task(process.ids.task_id(), None, link, b"", (), retries)
        task.method = self._name
        task.error_retry = options.retry_exceptions
        task.group = options.concurrency_group
        task.name = options.name
        task.window = options.window
        if handle._life is not None:
            task.holds = [handle._life]
        returns = 1 if options.num_returns is None else options.num_returns
        return launch(
            process, task, args, kwargs, returns, f"{handle._description.class_name}.{self._name}"
        )

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """`options(**options).remote(*args, **kwargs)`, as libraries call it."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call for later: a node of a graph, which may have other nodes as arguments (see `shoal.dag`)."""
        label = f"{self._handle._description.class_name}.{self._name}"
        return ClassMethodNode(label, lambda _results: self.remote, args, kwargs)

    def __repr__(self) -> str:
        return f"<ActorMethod {self._handle._description.class_name}.{self._name}>"


_FIELDS = {"_generator_backpressure_num_objects": "window"}
_SET = frozenset(
    {
        "num_returns",
        "max_task_retries",
        "retry_exceptions",
        "concurrency_group",
        "name",
        "_generator_backpressure_num_objects",
    }
)

_decode_description = msgspec.msgpack.Decoder(ClassDescription).decode
_descriptions: dict[bytes, Description] = {}


def _description_of(encoded: bytes, class_name: str) -> Description:
    description = _descriptions.get(encoded)
    if description is None or description.class_name != class_name:
        if len(_descriptions) > 1000:
            _descriptions.clear()
        description = Description(_decode_description(encoded), encoded, class_name)
        _descriptions[encoded] = description
    return description


def handle_of(process: Process, info: ActorInfo, entry: Entry | None) -> ActorHandle:
    """A handle from what the control store knows of an actor."""
    return ActorHandle(
        process,
        info.actor_id,
        _description_of(info.methods, info.class_name),
        info.max_task_retries,
        info.max_pending_calls,
        entry,
    )


def reduce_handle(handle: ActorHandle) -> tuple[Any, ...]:
    """How a handle is written inside a value."""
    entry = handle._life
    owner = "" if entry is None else entry.owner or current_process.require().address
    return load_handle, (
        handle._actor_id_bytes,
        owner,
        handle._description.class_name,
        handle._description.encoded,
        handle._max_task_retries,
        handle._max_pending_calls,
    )


def load_handle(
    actor_id: bytes, owner: str, class_name: str, encoded: bytes, retries: int, pending: int
) -> ActorHandle:
    """Rebuild a handle inside a value that was read in this process."""
    process = current_process.require()
    entry: Entry | None = None
    if owner:
        with process.lock:
            entry = process.objects.borrow((return_id(actor_id, 0), owner))
            entry.local += 1
    return ActorHandle(
        process, actor_id, _description_of(encoded, class_name), retries, pending, entry
    )


register_rebuilder(load_handle, 17)
register_ref_type(ActorHandle, reduce_handle)
