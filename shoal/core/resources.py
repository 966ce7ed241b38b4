"""Amounts of resources: what a node has, what is free, and which GPUs go to whom.

Amounts are integers in units of 1/10,000 (`UNIT`), so that a third of a CPU taken three times leaves exactly what was
there before. A GPU is more than an amount: it is an *instance* with an id. Shares below one come out of a single
instance, and whole GPUs are whole instances.

`NodeResources` guarantees that what it takes is taken at once or not at all, and that free amounts never exceed totals.
Free CPUs alone may fall below zero: a worker that goes on after it lent its CPU (see `core.leases`) takes it back
whether or not somebody else has it by then.

Leaves to others: who asks, in which order, and for how long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from shoal.messages.node import UNIT

CPU: Final = "CPU"
GPU: Final = "GPU"

Amounts = tuple[tuple[str, int], ...]
"""Sorted (name, amount) pairs: a demand, in the form in which messages carry it."""


def as_amounts(resources: Mapping[str, float]) -> Amounts:
    """Plain numbers, as users write them, as amounts.

    Raises:
        ValueError: an amount is negative, or so small that it would count as nothing.
    """
    amounts = []
    for name, value in sorted(resources.items()):
        amount = round(value * UNIT)
        if value < 0 or (amount == 0 and value != 0):
            raise ValueError(f"{name}={value!r}: amounts of resources are 0 or at least 0.0001")
        if amount:
            amounts.append((name, amount))
    return tuple(amounts)


def check_amounts(amounts: Amounts) -> None:
    """Raise unless a demand that came from elsewhere is one.

    Raises:
        ValueError: names out of order or twice, or a negative amount.
    """
    names = [name for name, _ in amounts]
    if any(amount < 0 for _, amount in amounts) or names != sorted(set(names)):
        raise ValueError(
            f"{amounts!r} is not a demand: sorted names, each once, and amounts from 0"
        )


def amount_text(amount: int) -> str:
    """An amount as users write it: 1, 0.5, 0.0001."""
    whole, rest = divmod(abs(amount), UNIT)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}" if not rest else f"{sign}{whole}.{rest:04d}".rstrip("0")


def amounts_text(amounts: Amounts) -> str:
    """A demand in words: "CPU 1, GPU 0.5"; "nothing" if it is empty."""
    return ", ".join(f"{name} {amount_text(amount)}" for name, amount in amounts) or "nothing"


class Allocation:
    """What one holder has: amounts, and shares of GPU instances as (index, amount)."""

    __slots__ = ("amounts", "gpus")

    def __init__(self, amounts: Amounts, gpus: tuple[tuple[int, int], ...] = ()) -> None:
        self.amounts = amounts
        self.gpus = gpus

    def __repr__(self) -> str:
        return f"Allocation({amounts_text(self.amounts)}, gpus={self.gpus})"


NOTHING: Final = Allocation(())


class NodeResources:
    """The resources of one node. `gpu_ids` names the GPU instances, as many as `total` says rounded up."""

    def __init__(self, total: Mapping[str, int], gpu_ids: Sequence[str] = ()) -> None:
        self.total = dict(total)
        self.available = dict(total)
        gpus = -(-self.total.get(GPU, 0) // UNIT)
        self.gpu_ids = list(gpu_ids) or [str(index) for index in range(gpus)]
        if len(self.gpu_ids) < gpus:
            raise ValueError(f"{gpus} GPUs were announced, but only {len(self.gpu_ids)} ids given")
        # What is free of each instance. A node with 0.5 GPU has half an instance.
        left = self.total.get(GPU, 0)
        self._gpu_free = [min(UNIT, max(0, left - index * UNIT)) for index in range(gpus)]
        self._gpu_total = list(self._gpu_free)

    def feasible(self, amounts: Amounts) -> bool:
        """Whether an idle node could give this."""
        total = self.total
        return all(amount <= total.get(name, 0) for name, amount in amounts) and (
            _pick_gpus(_of(amounts, GPU), self._gpu_total) is not None
        )

    def fits(self, amounts: Amounts, reserved: Mapping[str, int] | None = None) -> bool:
        """Whether this can be taken now, with `reserved` amounts left untouched."""
        available = self.available
        for name, amount in amounts:
            kept = reserved.get(name, 0) if reserved else 0
            if amount > available.get(name, 0) - kept:
                return False
        gpu = _of(amounts, GPU)
        return not gpu or _pick_gpus(gpu, self._gpu_free) is not None

    def take(self, amounts: Amounts) -> Allocation:
        """Take what `fits`."""
        picked = _pick_gpus(_of(amounts, GPU), self._gpu_free)
        assert picked is not None, "take() what fits"
        available = self.available
        for name, amount in amounts:
            available[name] -= amount
            assert available[name] >= 0, f"{name} was given twice"
        for index, share in picked:
            self._gpu_free[index] -= share
        return Allocation(amounts, picked)

    def give_back(self, allocation: Allocation) -> None:
        """Return an allocation. Once, and whole: `split` first to return a part."""
        available = self.available
        for name, amount in allocation.amounts:
            available[name] += amount
            assert available[name] <= self.total[name], f"{name} came back twice"
        for index, share in allocation.gpus:
            self._gpu_free[index] += share

    def lend_cpus(self, allocation: Allocation) -> None:
        """Free the CPUs of an allocation while its holder waits."""
        cpus = _of(allocation.amounts, CPU)
        if cpus:
            self.available[CPU] += cpus

    def reclaim_cpus(self, allocation: Allocation) -> None:
        """The holder goes on: its CPUs are counted again, below zero if somebody else has them."""
        cpus = _of(allocation.amounts, CPU)
        if cpus:
            self.available[CPU] -= cpus

    def shrink(self, allocation: Allocation, amounts: Amounts) -> Allocation:
        """Return all of an allocation but `amounts`, which must be part of it; what is still held."""
        kept = dict(amounts)
        available = self.available
        for name, amount in allocation.amounts:
            rest = amount - kept.get(name, 0)
            assert rest >= 0, f"{name}: an allocation cannot grow"
            available[name] += rest
        gpu = kept.get(GPU, 0)
        gpus = allocation.gpus
        if gpu != _of(allocation.amounts, GPU):
            # Keep as many of the same instances as are still needed.
            picked: list[tuple[int, int]] = []
            for index, share in gpus:
                keep = min(share, gpu)
                gpu -= keep
                self._gpu_free[index] += share - keep
                if keep:
                    picked.append((index, keep))
            gpus = tuple(picked)
        return Allocation(tuple(sorted(kept.items())), gpus)

    def ids_of(self, allocation: Allocation) -> list[str]:
        """The ids of an allocation's GPU instances."""
        return [self.gpu_ids[index] for index, _ in allocation.gpus]

    def missing(self, amounts: Amounts) -> list[tuple[str, int, int]]:
        """What is not free now, as (name, wanted, free)."""
        short = [
            (name, amount, self.available.get(name, 0))
            for name, amount in amounts
            if amount > self.available.get(name, 0)
        ]
        gpu = _of(amounts, GPU)
        if gpu and not any(name == GPU for name, _, _ in short):
            if _pick_gpus(gpu, self._gpu_free) is None:
                # Enough in sum, but in pieces of several instances.
                short.append((GPU, gpu, max(self._gpu_free)))
        return short

    def lacking(self, amounts: Amounts) -> list[tuple[str, int, int]]:
        """What the node does not even have, as (name, wanted, total)."""
        total = self.total
        short = [
            (name, amount, total.get(name, 0))
            for name, amount in amounts
            if amount > total.get(name, 0)
        ]
        gpu = _of(amounts, GPU)
        if gpu and not any(name == GPU for name, _, _ in short):
            if _pick_gpus(gpu, self._gpu_total) is None:
                short.append((GPU, gpu, total[GPU]))
        return short

    def check(self) -> None:
        """Assert the invariants."""
        for name, amount in self.available.items():
            assert amount <= self.total[name], name
            assert amount >= 0 or name == CPU, name
        for free, total in zip(self._gpu_free, self._gpu_total, strict=True):
            assert 0 <= free <= total
        assert sum(self._gpu_free) == self.available.get(GPU, 0)


def _of(amounts: Amounts, name: str) -> int:
    for key, amount in amounts:
        if key == name:
            return amount
    return 0


def _pick_gpus(amount: int, free: list[int]) -> tuple[tuple[int, int], ...] | None:
    """Which instances to take `amount` from: whole ones first, and the rest from the fullest that has it."""
    if not amount:
        return ()
    picked: list[tuple[int, int]] = []
    whole, rest = divmod(amount, UNIT)
    if whole:
        picked = [(index, UNIT) for index, left in enumerate(free) if left == UNIT][:whole]
        if len(picked) < whole:
            return None
    if rest:
        taken = {index for index, _ in picked}
        # Best fit: a share of a GPU that is in use already keeps the idle ones whole.
        fitting = [
            (left, index) for index, left in enumerate(free) if left >= rest and index not in taken
        ]
        if not fitting:
            return None
        picked.append((min(fitting)[1], rest))
    return tuple(picked)
