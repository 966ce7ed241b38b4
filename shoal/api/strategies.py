"""Where tasks and actors are to run: the options that say so, and what they come to.

Guarantees that a strategy that passes here is one that the cluster understands, and that what it names can hold what is asked for, as far
as this process can know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from shoal.api.groups import PlacementGroup
from shoal.core.labels import as_selector, parse_selector
from shoal.core.resources import Amounts, amounts_text
from shoal.ids import ID_SIZE
from shoal.messages.placement import (
    InBundle,
    LabelTerm,
    NodeAffinity,
    NodeLabels,
    Selector,
    Spread,
    Strategy,
)

PLACE_OPTIONS: Final = frozenset(
    {
        "scheduling_strategy",
        "label_selector",
        "fallback_strategy",
        "placement_group",
        "placement_group_bundle_index",
        "placement_group_capture_child_tasks",
    }
)


class PlacementGroupSchedulingStrategy:
    """In a placement group.

    Args:
        placement_group: The group; None: in none, whatever the group of the caller captures.
        placement_group_bundle_index: In this bundle, numbered from 0; -1: in any.
        placement_group_capture_child_tasks: Whether tasks and actors that are submitted from there run in the same group, unless
            they say otherwise. None: as it is for the caller.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group is not None and not isinstance(placement_group, PlacementGroup):
            raise TypeError(
                f"placement_group must be what shoal.util.placement_group() returned, not {placement_group!r}"
            )
        index = placement_group_bundle_index
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(
                f"placement_group_bundle_index must be an integer, -1 for any bundle, not {index!r}"
            )
        if placement_group is not None and not placement_group.is_empty:
            count = placement_group.bundle_count
            if not -1 <= index < count:
                raise ValueError(
                    f"placement_group_bundle_index={index}: the placement group has {count} bundles, numbered from 0; -1 is any"
                )
        elif index != -1:
            raise ValueError(
                f"placement_group_bundle_index={index} names a bundle, but there is no placement group"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """On a certain node.

    Args:
        node_id: The node, as `get_runtime_context().get_node_id()` names it.
        soft: Whether another will do if that one is gone, or can never serve it.
    """

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        if hasattr(node_id, "hex") and not isinstance(node_id, str | bytes):
            node_id = node_id.hex()
        node_id_bytes(node_id, "NodeAffinitySchedulingStrategy: node_id")
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable needs soft=True: a hard affinity never spills")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable needs soft=False: a soft affinity never fails")
        self.node_id = node_id
        self.soft = bool(soft)
        self._spill_on_unavailable = bool(_spill_on_unavailable)
        self._fail_on_unavailable = bool(_fail_on_unavailable)


class In:
    """The label has one of these values."""

    def __init__(self, *values: str) -> None:
        self.values = _texts(values, "In")


class NotIn:
    """The label has none of these values, or the node has no such label."""

    def __init__(self, *values: str) -> None:
        self.values = _texts(values, "NotIn")


class Exists:
    """The node has the label, whatever its value."""


class DoesNotExist:
    """The node has no such label."""


Condition = In | NotIn | Exists | DoesNotExist


class NodeLabelSchedulingStrategy:
    """On a node with certain labels.

    Args:
        hard: Conditions that must hold, by label: `In`, `NotIn`, `Exists` or `DoesNotExist`.
        soft: Conditions that hold as well if there is such a node.
    """

    def __init__(
        self, hard: Mapping[str, Condition], *, soft: Mapping[str, Condition] | None = None
    ) -> None:
        self.hard = dict(_conditions(hard, "hard"))
        self.soft = dict(_conditions(soft or {}, "soft"))
        if not self.hard and not self.soft:
            raise ValueError(
                "NodeLabelSchedulingStrategy needs a condition: hard={'zone': In('a')}, or soft"
            )


def _texts(values: Sequence[Any], what: str) -> tuple[str, ...]:
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what} takes the values of a label, as strings, not {values!r}")
    return tuple(values)


def _conditions(conditions: Any, which: str) -> Mapping[str, Condition]:
    if not isinstance(conditions, Mapping) or not all(
        isinstance(key, str) and isinstance(condition, Condition)
        for key, condition in conditions.items()
    ):
        raise TypeError(
            f"{which} must be a dict of labels to In(…), NotIn(…), Exists() or DoesNotExist(), not {conditions!r}"
        )
    return conditions


def node_id_bytes(node_id: Any, what: str) -> bytes:
    """The id of a node, from its hexadecimal digits.

    Raises:
        ValueError: it is none.
    """
    try:
        binary = bytes.fromhex(node_id)
    except (TypeError, ValueError):
        binary = b""
    if len(binary) != ID_SIZE:
        raise ValueError(
            f"{what} must be a node's id, {2 * ID_SIZE} hexadecimal digits as in shoal.nodes(), not {node_id!r}"
        )
    return binary


# --- what they come to ----------------------------------------------------------------------------------------------


class Where(NamedTuple):
    """What the options say. `capturable`: nothing, so that a group may capture it. `inherits`: it captures what is submitted from it if
    its own caller does."""

    strategy: Strategy | None = None
    capturable: bool = False
    inherits: bool = False


def where(options: Mapping[str, Any], who: str, *demands: Amounts) -> Where:
    """The checked options of a task or an actor that asks for these amounts (in this moment and that).

    Raises:
        ValueError, TypeError: they make no sense; says which and why.
    """
    given = options.get("scheduling_strategy")
    if options.get("placement_group", "default") not in {"default", None}:
        if given is not None:
            raise ValueError(
                "placement_group and scheduling_strategy both say where to run; give "
                "scheduling_strategy=PlacementGroupSchedulingStrategy(…) only"
            )
        given = PlacementGroupSchedulingStrategy(
            options["placement_group"],
            options.get("placement_group_bundle_index", -1),
            options.get("placement_group_capture_child_tasks"),
        )
    elif options.get("placement_group_bundle_index", -1) != -1:
        raise ValueError(
            "placement_group_bundle_index names a bundle, but there is no placement_group"
        )
    choices = _choices(options)
    if isinstance(given, PlacementGroupSchedulingStrategy):
        if choices:
            raise ValueError(
                "label_selector has no place beside a placement group, whose bundles have their nodes already; give the group "
                "a bundle_label_selector"
            )
        return _in_group(given, who, demands)
    if isinstance(given, NodeAffinitySchedulingStrategy):
        if choices:
            raise ValueError(
                "label_selector has no place beside a node affinity, which names the node already"
            )
        return Where(
            NodeAffinity(
                node_id_bytes(given.node_id, "node_id"),
                given.soft,
                given._spill_on_unavailable,
                given._fail_on_unavailable,
            )
        )
    if isinstance(given, NodeLabelSchedulingStrategy):
        if choices:
            raise ValueError(
                "label_selector and NodeLabelSchedulingStrategy both name labels; give one"
            )
        hard, soft = _terms(given.hard), _terms(given.soft)
        selectors = [as_selector([*hard, *soft])]
        if soft:
            selectors.append(as_selector(hard))
        return Where(NodeLabels(tuple(selectors)))
    if given is not None and given not in ("DEFAULT", "SPREAD"):
        raise ValueError(
            f"scheduling_strategy={given!r} is none: it must be 'DEFAULT', 'SPREAD', or one of "
            "PlacementGroupSchedulingStrategy, NodeAffinitySchedulingStrategy and NodeLabelSchedulingStrategy of "
            "shoal.util.scheduling_strategies"
        )
    if choices:
        return Where(NodeLabels(choices, spread=given == "SPREAD"))
    if given == "SPREAD":
        return Where(Spread())
    return Where(
        capturable=given is None and options.get("placement_group", "default") == "default"
    )


def _in_group(
    given: PlacementGroupSchedulingStrategy, who: str, demands: Sequence[Amounts]
) -> Where:
    group = given.placement_group
    if group is None or group.is_empty:
        return Where()
    index = given.placement_group_bundle_index
    bundles = group.bundle_amounts
    candidates = bundles if index < 0 else [bundles[index]]
    for demand in demands:
        if not any(_covers(bundle, demand) for bundle in candidates):
            which = "any bundle" if index < 0 else f"bundle {index}"
            has = "; ".join(amounts_text(bundle) for bundle in candidates)
            raise ValueError(
                f"{who} asks for {amounts_text(demand)}, which does not fit into {which} of the placement group ({has}): ask for less "
                "(an actor needs CPU 1 to start unless num_cpus=0 is given), or make the group with larger bundles"
            )
    captures = given.placement_group_capture_child_tasks
    # Functions and classes with this option may be sent anywhere.
    group.await_accepted()
    strategy = InBundle(group.id.binary(), index, bool(captures))
    return Where(strategy, inherits=captures is None)


def _covers(bundle: Amounts, demand: Amounts) -> bool:
    has = dict(bundle)
    return all(amount <= has.get(name, 0) for name, amount in demand)


def _choices(options: Mapping[str, Any]) -> tuple[Selector, ...]:
    """What `label_selector` and `fallback_strategy` allow, in this order."""
    selector = options.get("label_selector")
    fallbacks = options.get("fallback_strategy")
    if selector is None and fallbacks is None:
        return ()
    choices = [_selector(selector or {}, "label_selector")]
    if fallbacks is not None:
        if not isinstance(fallbacks, Sequence) or isinstance(fallbacks, str):
            raise TypeError(
                f"fallback_strategy must be a list such as [{{'label_selector': {{'zone': 'a'}}}}], not {fallbacks!r}"
            )
        for fallback in fallbacks:
            if not isinstance(fallback, Mapping) or set(fallback) != {"label_selector"}:
                raise ValueError(
                    f"fallback_strategy has {fallback!r}; each item must be a dict with the one key 'label_selector'"
                )
            choices.append(_selector(fallback["label_selector"], "fallback_strategy"))
    return tuple(choices) if any(choices) else ()


def _selector(conditions: Any, what: str) -> Selector:
    if not isinstance(conditions, Mapping):
        raise TypeError(
            f"{what} must be a dict of labels to conditions, such as {{'zone': 'a'}}, not {conditions!r}"
        )
    try:
        return parse_selector(conditions)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _terms(conditions: Mapping[str, Condition]) -> list[LabelTerm]:
    terms = []
    for key, condition in conditions.items():
        match condition:
            case In(values=values):
                terms.append(LabelTerm(key, "in", tuple(sorted(set(values)))))
            case NotIn(values=values):
                terms.append(LabelTerm(key, "!in", tuple(sorted(set(values)))))
            case Exists():
                terms.append(LabelTerm(key, "exists"))
            case _:
                terms.append(LabelTerm(key, "!exists"))
    return terms
