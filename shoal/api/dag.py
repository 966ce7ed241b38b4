"""Graphs of calls that are made later: `.bind()` instead of `.remote()`, and `.execute()` to run what was bound.

::

    with InputNode() as x:
        dag = add.bind(double.bind(x), square.bind(x))
    shoal.get(dag.execute(3))

A node is a call and its arguments; the nodes among the arguments, also those inside lists, tuples and dictionaries, are
the nodes that it depends on. `execute` submits each node below it once, in an order in which every node comes after those it depends on,
and passes on references: nothing is fetched, and the tasks run as far in parallel as they depend on each other.

A bound actor class is a new actor in every execution. Calls of its methods run in the order in which they were bound,
and executing one executes those before it, because they may have changed the actor.

Graphs stay in the process that bound them. This module knows nothing of tasks and actors but how to call them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, Self

from shoal.api.graph_input import GraphInput

Results = dict["DAGNode", Any]

_CONTAINERS: Final = (list, tuple, dict)


class DAGNode(ABC):
    """A part of a graph. Equal only to itself.

    Its attributes begin with an underscore, because those of some nodes are names of the user's.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], before: Sequence[DAGNode] = ()
    ) -> None:
        # Copied, so that later changes to a list cannot make a circle.
        self._args = [_copied(value) for value in args]
        self._kwargs = {name: _copied(value) for name, value in kwargs.items()}
        found = dict.fromkeys(before)
        for value in (*self._args, *self._kwargs.values()):
            found.update(dict.fromkeys(_nodes_in(value)))
        # What must be submitted before it.
        self._upstream: tuple[DAGNode, ...] = tuple(found)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Submit the whole graph below this node, and the node.

        Args:
            *args: The input: one value, or several for `inp[0]`, `inp[1]`, …
            **kwargs: More of it, for `inp.name`.

        Returns:
            What `.remote()` would return: a reference, the handle of an actor, for `MultiOutputNode` a list. Of an
            input node the input itself.

        Raises:
            TypeError: the input is not what the graph's `InputNode` is used for, or the graph has none.
            ValueError: the graph has two of them.
        """
        order = self._order()
        inputs = [node for node in order if isinstance(node, InputNode)]
        if len(inputs) > 1:
            raise ValueError(
                "the graph has two InputNodes; bind all of it in one `with InputNode() as inp:`"
            )
        if (args or kwargs) and not inputs:
            raise TypeError("execute() was given input, and the graph has no InputNode to take it")
        results: Results = {node: GraphInput(args, kwargs) for node in inputs}
        for node in order:
            if node not in results:
                results[node] = node._submit(results)
        result = results[self]
        return result.whole() if isinstance(result, GraphInput) else result

    def _order(self) -> list[DAGNode]:
        """This node and all below it, each after those it depends on. No recursion: chains may be long."""
        order: dict[DAGNode, None] = {}
        stack: list[tuple[DAGNode, Iterator[DAGNode]]] = [(self, iter(self._upstream))]
        seen = {self}
        while stack:
            node, rest = stack[-1]
            for below in rest:
                if below not in seen:
                    seen.add(below)
                    stack.append((below, iter(below._upstream)))
                    break
            else:
                order[node] = None
                stack.pop()
        return list(order)

    @abstractmethod
    def _submit(self, results: Results) -> Any:
        """Submit this node, those below it being done; what comes back is its result."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} is part of a graph and cannot be sent. As an argument of .bind() it may stand inside lists, tuples "
            "and dictionaries, and nowhere deeper; call .execute() to have its result instead"
        )


class _CallNode(DAGNode):
    """A call of what `remote(results)` returns."""

    def __init__(
        self,
        label: str,
        remote: Callable[[Results], Callable[..., Any]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        before: Sequence[DAGNode] = (),
    ) -> None:
        super().__init__(args, kwargs, before)
        self._label = label
        self._remote = remote

    def _submit(self, results: Results) -> Any:
        args = [_filled(value, results) for value in self._args]
        kwargs = {name: _filled(value, results) for name, value in self._kwargs.items()}
        return self._remote(results)(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._label}>"


class FunctionNode(_CallNode):
    """A task. Made by `bind` of a remote function."""


class ClassMethodNode(_CallNode):
    """A call of an actor's method. Made by `bind` of a method, of an actor that lives or of a `ClassNode`."""


class ClassNode(_CallNode):
    """An actor, of which there will be a new one in every execution. Its attributes are methods to bind."""

    def __init__(self, actor_class: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__(actor_class._name, lambda _: actor_class.remote, args, kwargs)
        self._cls = actor_class._cls
        self._last_call: ClassMethodNode | None = None

    def __getattr__(self, name: str) -> UnboundMethod:
        if name.startswith("_"):
            raise AttributeError(f"{name}: methods that begin with an underscore cannot be bound")
        if not callable(getattr(self._cls, name, None)):
            raise AttributeError(  # noqa: TRY004 - a missing attribute, as Python says it
                f"actor class {self._label} has no method {name!r}"
            )
        return UnboundMethod(self, name, {})


class UnboundMethod:
    """A method of an actor that does not exist yet."""

    def __init__(self, actor: ClassNode, name: str, options: dict[str, Any]) -> None:
        self._actor = actor
        self._name = name
        self._options = options

    def options(self, **options: Any) -> UnboundMethod:
        """The same method with other options."""
        return UnboundMethod(self._actor, self._name, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call of the method, after those of this actor that were bound before."""
        actor = self._actor
        before = [actor] if actor._last_call is None else [actor, actor._last_call]

        def remote(results: Results) -> Any:
            method = getattr(results[actor], self._name)
            return (method.options(**self._options) if self._options else method).remote

        node = ClassMethodNode(f"{actor._label}.{self._name}", remote, args, kwargs, before)
        actor._last_call = node
        return node


class MultiOutputNode(DAGNode):
    """Several nodes as one: `execute` returns the list of their results.

    Raises:
        TypeError: something else than nodes was passed.
    """

    def __init__(self, nodes: Sequence[DAGNode]) -> None:
        for node in nodes:
            if not isinstance(node, DAGNode):
                raise TypeError(f"MultiOutputNode takes a list of nodes; {node!r} is none")
        super().__init__(nodes, {})

    def _submit(self, results: Results) -> Any:
        return [_filled(node, results) for node in self._args]

    def __repr__(self) -> str:
        return f"<MultiOutputNode of {len(self._args)}>"


class InputNode(DAGNode):
    """What `execute` is called with: `inp` is its only argument.

    Where there are several, `inp[0]` is the first and `inp.name` the one of that name; of a single one they are its
    item and its attribute.
    """

    def __init__(self) -> None:
        super().__init__((), {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing ends here: `with` shows which part of a program binds the graph."""

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        return InputAttributeNode(self, key, attribute=False)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(self, name, attribute=True)

    def __iter__(self) -> NoReturn:
        # Or Python would try inp[0], inp[1], … without an end.
        raise TypeError(
            "how many inputs there will be is not known; take them as inp[0], inp[1], …"
        )

    def _submit(self, results: Results) -> Any:
        return results[self]

    def __repr__(self) -> str:
        return "<InputNode>"


class InputAttributeNode(DAGNode):
    """One part of the input."""

    def __init__(self, source: InputNode, key: int | str, *, attribute: bool) -> None:
        super().__init__((), {}, [source])
        self._source = source
        self._key = key
        self._attribute = attribute

    def _submit(self, results: Results) -> Any:
        given: GraphInput = results[self._source]
        return given.part(self._key, self._attribute)

    def __repr__(self) -> str:
        return f"<InputNode.{self._key}>" if self._attribute else f"<InputNode[{self._key!r}]>"


# --- arguments -----------------------------------------------------------------------------------------------------------


def _nodes_in(value: Any) -> Iterator[DAGNode]:
    if isinstance(value, DAGNode):
        yield value
    elif type(value) in _CONTAINERS:
        for item in value.values() if type(value) is dict else value:
            yield from _nodes_in(item)


def _copied(value: Any) -> Any:
    """The value, with copies of the containers that hold nodes."""
    return _replaced(value, lambda node: node)


def _filled(value: Any, results: Results) -> Any:
    """The value with results in the place of nodes."""

    def result_of(node: DAGNode) -> Any:
        result = results[node]
        return result.whole() if isinstance(result, GraphInput) else result

    return _replaced(value, result_of)


def _replaced(value: Any, replacement: Callable[[DAGNode], Any]) -> Any:
    if isinstance(value, DAGNode):
        return replacement(value)
    if type(value) not in _CONTAINERS or next(_nodes_in(value), None) is None:
        return value
    if type(value) is dict:
        return {key: _replaced(item, replacement) for key, item in value.items()}
    items = [_replaced(item, replacement) for item in value]
    return tuple(items) if type(value) is tuple else items
