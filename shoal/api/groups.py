"""Placement groups: `placement_group()` reserves resources on nodes, together or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shoal.api.amounts import resource_amounts
from shoal.core.labels import parse_selector
from shoal.core.resources import Amounts
from shoal.ids import ID_SIZE, PlacementGroupID
from shoal.messages.node import UNIT
from shoal.messages.placement import Bundle, GroupInfo, GroupSpec, InBundle
from shoal.runtime import current_process
from shoal.runtime.process import Process
from shoal.runtime.refs import ObjectRef
from shoal.serial.values import serialize

STRATEGIES: Final = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """Resources that are reserved together. Pass it wherever you like; made by `placement_group()`."""

    def __init__(
        self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None
    ) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """The group that stands for none."""
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        """Whether it stands for none."""
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle has, by resource."""
        if self.bundle_cache is None:
            if self.is_empty:
                return []
            found = current_process.require().groups.query(self.id.binary())
            if not found:
                raise ValueError(
                    f"placement group {self.id.hex()[:12]} is not known: it was removed long ago, or belongs to another cluster"
                )
            self.bundle_cache = _specs(found[0])
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    @property
    def bundle_amounts(self) -> list[Amounts]:
        """What each bundle has, in units."""
        return [resource_amounts(bundle, "bundle") for bundle in self.bundle_specs]

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference to this group, which is there when all bundles are reserved. It fails with `TaskPlacementGroupRemoved` if the
        group is removed before."""
        process = current_process.require()
        self._must_be_one("ready")
        value = serialize(_Reserved(self.id, self.bundle_cache)).data
        return process.groups.when_ready(self.id.binary(), value)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until all bundles are reserved; whether they are."""
        process = current_process.require()
        self._must_be_one("wait")
        ref = process.groups.when_ready(self.id.binary(), _READY)
        return process.waiting.wait_for(ref._entry, timeout_seconds) and ref._entry.value == _READY

    def _must_be_one(self, what: str) -> None:
        if self.is_empty:
            raise ValueError(f"{what}() of the empty placement group: nothing was reserved for it")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        self.await_accepted()
        return PlacementGroup, (self.id, self.bundle_cache)

    def await_accepted(self) -> None:
        """Before anybody else hears of it: wait until it is known everywhere that there is such a group."""
        current_process.refuse_forked()
        process = current_process.process
        if process is not None:
            process.groups.await_accepted(self.id.binary())


class _Reserved(PlacementGroup):
    """What `ready` refers to: a group that others see when it is reserved, and accepted long since."""

    def await_accepted(self) -> None:
        pass


_READY: Final = serialize(True).data


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: Sequence[Mapping[str, str]] | None = None,
) -> PlacementGroup:
    """Reserve resources, together or not at all. Returns at once; see `PlacementGroup.ready` and `wait`.

    Args:
        bundles: What is to be reserved: a dict of resources for each bundle, which is on one node.
        strategy: "PACK" (few nodes, if possible), "SPREAD" (many, if possible), "STRICT_PACK" (one) or "STRICT_SPREAD" (each bundle
            on a node of its own).
        name: For `get_placement_group`; unique in the namespace.
        lifetime: "detached": it stays when the program ends.
        bundle_label_selector: For each bundle, conditions on the labels of its node, as in the option `label_selector`.

    Raises:
        ValueError, TypeError: the arguments make no sense, or the name is taken; says which and why.
    """
    process = current_process.require()
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    if lifetime not in {None, "detached"}:
        raise ValueError(f'lifetime must be None or "detached", not {lifetime!r}')
    target = b""
    if _soft_target_node_id is not None:
        if strategy not in {"PACK", "STRICT_PACK"}:
            raise ValueError(
                f"_soft_target_node_id names one node, which has no sense with {strategy}; use PACK or STRICT_PACK"
            )
        target = _node_id(_soft_target_node_id)
    made = _bundles(bundles, bundle_label_selector)
    spec = GroupSpec(
        process.ids.task_id(),
        made,
        strategy,
        name,
        process.namespace,
        lifetime == "detached",
        process.job_id,
        target,
    )
    process.groups.create(spec)
    return PlacementGroup(
        PlacementGroupID(spec.group_id),
        [{key: float(value) for key, value in bundle.items()} for bundle in bundles],
    )


def _node_id(text: Any) -> bytes:
    try:
        node_id = bytes.fromhex(text)
    except (TypeError, ValueError):
        node_id = b""
    if len(node_id) != ID_SIZE:
        raise ValueError(f"_soft_target_node_id must be a node's id in hexadecimal, not {text!r}")
    return node_id


def _bundles(bundles: Any, selectors: Any) -> list[Bundle]:
    if isinstance(bundles, Mapping) or not isinstance(bundles, Sequence):
        raise TypeError(f"bundles must be a list of dicts, such as [{{'CPU': 1}}], not {bundles!r}")
    if not bundles:
        raise ValueError("a placement group needs at least one bundle, such as [{'CPU': 1}]")
    if selectors is not None and (
        not isinstance(selectors, Sequence) or len(selectors) != len(bundles)
    ):
        raise ValueError(
            f"bundle_label_selector must have a dict for each of the {len(bundles)} bundles ({{}} for none), not {selectors!r}"
        )
    made = []
    for index, bundle in enumerate(bundles):
        if not isinstance(bundle, Mapping):
            raise TypeError(
                f"bundle {index} must be a dict of resources to amounts, not {bundle!r}"
            )
        amounts = resource_amounts(bundle, f"bundle {index}")
        if not amounts:
            raise ValueError(
                f"bundle {index} asks for nothing ({dict(bundle)!r}); give it at least one resource, such as {{'CPU': 1}}"
            )
        selector = selectors[index] if selectors is not None else {}
        if not isinstance(selector, Mapping):
            raise TypeError(
                f"bundle_label_selector[{index}] must be a dict of labels to conditions, not {selector!r}"
            )
        try:
            made.append(Bundle(amounts, parse_selector(selector)))
        except ValueError as error:
            raise ValueError(f"bundle_label_selector[{index}]: {error}") from None
    return made


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give up what a group has reserved. Tasks and actors in it are ended.

    Raises:
        TypeError: that is no placement group.
    """
    process = current_process.require()
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group() takes a PlacementGroup, not {placement_group!r}")
    if not placement_group.is_empty:
        process.groups.remove(placement_group.id.binary())


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of that name, in this program's namespace.

    Raises:
        ValueError: there is none.
    """
    process = current_process.require()
    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(
            f"get_placement_group() takes the name of a group, not {placement_group_name!r}"
        )
    found = process.groups.query(name=placement_group_name, namespace=process.namespace)
    if not found:
        raise ValueError(
            f"there is no placement group named {placement_group_name!r} in namespace {process.namespace!r}"
        )
    info = found[0]
    return PlacementGroup(PlacementGroupID(info.record.spec.group_id), _specs(info))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of a group; without one, of all groups, by id."""
    process = current_process.require()
    if placement_group is None:
        return {info.record.spec.group_id.hex(): _row(info) for info in process.groups.query()}
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"placement_group_table() takes a PlacementGroup, not {placement_group!r}")
    found = process.groups.query(placement_group.id.binary())
    return _row(found[0]) if found else {}


def _specs(info: GroupInfo) -> list[dict[str, float]]:
    return [
        {name: amount / UNIT for name, amount in bundle.resources}
        for bundle in info.record.spec.bundles
    ]


def _row(info: GroupInfo) -> dict[str, Any]:
    record = info.record
    spec = record.spec
    return {
        "placement_group_id": spec.group_id.hex(),
        "name": spec.name,
        "bundles": dict(enumerate(_specs(info))),
        "bundles_to_node_id": {index: node_id.hex() for index, node_id in enumerate(record.places)},
        "strategy": spec.strategy,
        "state": record.state,
        "is_detached": spec.detached,
        "namespace": spec.namespace,
        "waits": info.waits if record.state != "REMOVED" else "",
        "cause": record.cause,
    }


def current_group(process: Process) -> InBundle | None:
    """The placement group in which the running code is."""
    shape = process.assigned_shape
    strategy = None if shape is None else shape.strategy
    return strategy if isinstance(strategy, InBundle) else None


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the task or actor runs that asks; None outside of any."""
    bundle = current_group(current_process.require())
    return None if bundle is None else PlacementGroup(PlacementGroupID(bundle.group_id))
