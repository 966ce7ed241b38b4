"""Options of tasks and actors: which there are, what they may be, and what they come to.

Guarantees that whatever passes `task_options` or `actor_options` can be used without another check, and that what does not raises an
error that says what is wrong and what would be right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shoal.api.amounts import amount_of
from shoal.api.strategies import PLACE_OPTIONS, where
from shoal.messages.node import Shape

STREAMING: Final = -1
"""`num_returns` of a generator whose items are results of their own."""

_RESOURCE_OPTIONS: Final = frozenset(
    {"num_cpus", "num_gpus", "memory", "resources", "accelerator_type"}
)
_COMMON: Final = _RESOURCE_OPTIONS | {
    "name",
    "runtime_env",
    "enable_task_events",
    *PLACE_OPTIONS,
}
TASK_OPTIONS: Final = _COMMON | {
    "num_returns",
    "max_retries",
    "retry_exceptions",
    "max_calls",
    "_generator_backpressure_num_objects",
}
ACTOR_OPTIONS: Final = _COMMON | {
    "namespace",
    "get_if_exists",
    "lifetime",
    "max_restarts",
    "max_task_retries",
    "max_concurrency",
    "concurrency_groups",
    "max_pending_calls",
    "allow_out_of_order_execution",
}
METHOD_OPTIONS: Final = frozenset(
    {
        "name",
        "num_returns",
        "max_task_retries",
        "retry_exceptions",
        "concurrency_group",
        "enable_task_events",
        "_generator_backpressure_num_objects",
    }
)


class TaskOptions(msgspec.Struct, frozen=True):
    """The checked options of a remote function. `capturable` and `inherits` are as in `strategies.Where`."""

    shape: Shape
    capturable: bool = True
    inherits: bool = False
    num_returns: int | None = None
    max_retries: int | None = None
    retry_exceptions: bool | tuple[str, ...] = False
    max_calls: int = 0
    name: str = ""
    window: int = 0


class ActorOptions(msgspec.Struct, frozen=True):
    """The checked options of an actor class. `capturable` and `inherits` are as in `strategies.Where`."""

    shape: Shape
    placement_shape: Shape
    capturable: bool = True
    inherits: bool = False
    name: str = ""
    namespace: str | None = None
    get_if_exists: bool = False
    detached: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 0
    concurrency_groups: dict[str, int] = {}
    max_pending_calls: int = -1
    out_of_order: bool | None = None


class MethodOptions(msgspec.Struct, frozen=True, array_like=True):
    """The checked options of an actor's method; None is the actor's default."""

    num_returns: int | None = None
    max_task_retries: int | None = None
    retry_exceptions: bool | tuple[str, ...] = False
    concurrency_group: str = ""
    name: str = ""
    window: int = 0


def task_options(options: Mapping[str, Any], function_name: str) -> TaskOptions:
    """Check the options of a remote function.

    Raises:
        ValueError: an option that does not exist, or a value that it cannot have.
        TypeError: a value of the wrong type.
    """
    _refuse_unknown(options, TASK_OPTIONS, f"remote function {function_name}()")
    amounts = resources(options, default_cpus=1.0)
    place = where(options, f"{function_name}()", amounts)
    return TaskOptions(
        shape=Shape(amounts, _runtime_env(options), place.strategy),
        capturable=place.capturable,
        inherits=place.inherits,
        num_returns=_num_returns(options.get("num_returns")),
        max_retries=_at_least(options, "max_retries", -1),
        retry_exceptions=_retry_exceptions(options),
        max_calls=_at_least(options, "max_calls", 0) or 0,
        name=_text(options, "name"),
        window=_window(options),
    )


def actor_options(options: Mapping[str, Any], class_name: str) -> ActorOptions:
    """Check the options of an actor class.

    Raises:
        ValueError: an option that does not exist, or a value that it cannot have.
        TypeError: a value of the wrong type.
    """
    _refuse_unknown(options, ACTOR_OPTIONS, f"actor class {class_name}")
    env = _runtime_env(options)
    held = resources(options, default_cpus=0.0)
    placed = held if options.get("num_cpus") is not None else resources(options, default_cpus=1.0)
    name = _text(options, "name")
    if options.get("name") == "":
        raise ValueError("name must not be empty; leave it out for an actor without a name")
    lifetime = options.get("lifetime")
    if lifetime not in {None, "detached", "non_detached"}:
        raise ValueError(f'lifetime must be None, "detached" or "non_detached", not {lifetime!r}')
    if options.get("get_if_exists") and not name:
        raise ValueError("get_if_exists needs a name: without one there is nothing to look for")
    groups = options.get("concurrency_groups") or {}
    if not isinstance(groups, Mapping) or not all(
        isinstance(key, str) and isinstance(limit, int) and limit > 0
        for key, limit in groups.items()
    ):
        raise ValueError(
            f"concurrency_groups must be a dict of names to positive limits, such as {{'io': 2}}, not {groups!r}"
        )
    place = where(options, f"actor class {class_name}", held, placed)
    return ActorOptions(
        shape=Shape(held, env, place.strategy),
        placement_shape=Shape(placed, env, place.strategy),
        capturable=place.capturable,
        inherits=place.inherits,
        name=name,
        namespace=_text(options, "namespace") or None,
        get_if_exists=bool(options.get("get_if_exists")),
        detached=lifetime == "detached",
        max_restarts=_at_least(options, "max_restarts", -1) or 0,
        max_task_retries=_at_least(options, "max_task_retries", -1) or 0,
        max_concurrency=_at_least(options, "max_concurrency", 1) or 0,
        concurrency_groups=dict(groups),
        max_pending_calls=_pending_limit(options),
        out_of_order=options.get("allow_out_of_order_execution"),
    )


def method_options(options: Mapping[str, Any]) -> MethodOptions:
    """Check the options of an actor's method.

    Raises:
        ValueError: an option that does not exist, or a value that it cannot have.
        TypeError: a value of the wrong type.
    """
    _refuse_unknown(options, METHOD_OPTIONS, "an actor's method")
    return MethodOptions(
        num_returns=_num_returns(options.get("num_returns")),
        max_task_retries=_at_least(options, "max_task_retries", -1),
        retry_exceptions=_retry_exceptions(options),
        concurrency_group=_text(options, "concurrency_group"),
        name=_text(options, "name"),
        window=_window(options),
    )


# --- resources --------------------------------------------------------------------------------------------------------


def resources(options: Mapping[str, Any], default_cpus: float) -> tuple[tuple[str, int], ...]:
    """What the options ask of a node, in units, sorted by name; what is 0 is left out."""
    cpus = options.get("num_cpus")
    amounts = {
        "CPU": amount_of("num_cpus", default_cpus if cpus is None else cpus),
        "GPU": amount_of("num_gpus", options.get("num_gpus") or 0),
        "memory": amount_of("memory", options.get("memory") or 0),
    }
    custom = options.get("resources") or {}
    if not isinstance(custom, Mapping):
        raise TypeError(
            f"resources must be a dict of names to amounts, such as {{'disk': 1}}, not {custom!r}"
        )
    for name, amount in custom.items():
        if name in {"CPU", "GPU", "memory"}:
            option = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}[name]
            raise ValueError(f"resources must not name {name!r}; use {option}= instead")
        amounts[name] = amount_of(f"resources[{name!r}]", amount)
    kind = options.get("accelerator_type")
    if kind is not None:
        amounts[f"accelerator_type:{kind}"] = 10
    return tuple(sorted((name, amount) for name, amount in amounts.items() if amount))


# --- single options -----------------------------------------------------------------------------------------------


def _refuse_unknown(options: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    for name in options:
        if name not in known:
            raise ValueError(
                f"Invalid option keyword {name!r} for {what}; the options are: {', '.join(sorted(known))}"
            )


def _num_returns(value: Any) -> int | None:
    if value is None:
        return None
    if value in {"streaming", "dynamic"}:
        return STREAMING
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'num_returns must be an integer or "streaming", not {value!r}')
    if value < 0:
        raise ValueError(f"num_returns must be 0 or more, not {value}")
    return value


def _at_least(options: Mapping[str, Any], name: str, least: int) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        forever = " (-1: without end)" if least == -1 else ""
        raise ValueError(f"{name} must be {least} or more{forever}, not {value}")
    return value


def _pending_limit(options: Mapping[str, Any]) -> int:
    value = _at_least(options, "max_pending_calls", -1)
    if value == 0:
        raise ValueError("max_pending_calls=0 would refuse every call; use -1 for no limit")
    return -1 if value is None else value


def _text(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    return value


def _window(options: Mapping[str, Any]) -> int:
    value = options.get("_generator_backpressure_num_objects")
    if value is None or value == -1:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"_generator_backpressure_num_objects must be a positive integer, or -1 for no limit, not {value!r}"
        )
    return value


def _retry_exceptions(options: Mapping[str, Any]) -> bool | tuple[str, ...]:
    value = options.get("retry_exceptions")
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, list | tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        return tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in value)
    raise TypeError(
        f"retry_exceptions must be True, False or a list of exception classes, not {value!r}"
    )


def _runtime_env(options: Mapping[str, Any]) -> str:
    env = options.get("runtime_env")
    return canonical_env(env) if env else ""


def canonical_env(env: Any) -> str:
    """The canonical JSON of a runtime environment: equal environments give equal text.

    Raises:
        ValueError: it asks for what cannot be set up.
        TypeError: it is not a dict, or its parts have the wrong types.
    """
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict, not {env!r}")
    known = {"env_vars", "working_dir", "py_modules", "config"}
    for key in env:
        if key not in known:
            raise ValueError(
                f"runtime_env has {key!r}, which this release cannot set up; it knows: {', '.join(sorted(known))}"
            )
    variables = env.get("env_vars") or {}
    if not isinstance(variables, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in variables.items()
    ):
        raise TypeError(
            f"runtime_env['env_vars'] must be a dict of strings to strings, not {variables!r}"
        )
    modules = env.get("py_modules") or []
    if not isinstance(modules, list | tuple) or not all(isinstance(path, str) for path in modules):
        raise TypeError(f"runtime_env['py_modules'] must be a list of paths, not {modules!r}")
    folder = env.get("working_dir")
    if folder is not None and not isinstance(folder, str):
        raise TypeError(f"runtime_env['working_dir'] must be a path, not {folder!r}")
    kept: dict[str, Any] = {}
    if variables:
        kept["env_vars"] = dict(sorted(variables.items()))
    if folder:
        kept["working_dir"] = folder
    if modules:
        kept["py_modules"] = list(modules)
    return json.dumps(kept, sort_keys=True) if kept else ""
