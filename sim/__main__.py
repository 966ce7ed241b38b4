"""`python -m sim`: simulate clusters of several sizes and print what it costs and how well it works."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from sim.costs import DecisionCosts, measure
from sim.world import Plan, Result, World

_ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("requests in the time that was counted", lambda r: f"{r.requests:,}"),
    ("forwarded, times per request", lambda r: f"{r.forwarded:.2f}"),
    ("answers “busy”, per request", lambda r: f"{r.busy_per_request:.3f}"),
    ("withdrawn for a better place, per request", lambda r: f"{r.moved_per_request:.3f}"),
    ("leases lost with nodes that died", lambda r: f"{r.lost:,}"),
    ("wait for a lease, mean, ms", lambda r: f"{r.wait_mean_ms:.1f}"),
    ("wait for a lease, p99, ms", lambda r: f"{r.wait_p99_ms:.1f}"),
    ("CPUs in use, p50 of nodes", lambda r: f"{r.utilisation[0]:.0%}"),
    ("CPUs in use, p99 of nodes", lambda r: f"{r.utilisation[1]:.0%}"),
    ("CPUs in use, most of any node", lambda r: f"{r.utilisation[2]:.0%}"),
    ("age of what views say, mean, s", lambda r: f"{r.view_age_s:.3f}"),
    ("control store: messages in, /s", lambda r: f"{r.messages_in_s:,.0f}"),
    ("control store: messages out, /s", lambda r: f"{r.messages_out_s:,.0f}"),
    ("control store: in, MB/s", lambda r: f"{r.bytes_in_s / 1e6:.2f}"),
    ("control store: out, MB/s", lambda r: f"{r.bytes_out_s / 1e6:.1f}"),
    ("control store: cores that this needs", lambda r: f"{r.control_cores:.2f}"),
    ("control store: every row to every node takes, s", lambda r: f"{r.round_s:.2f}"),
    ("(the simulation took, s)", lambda r: f"{r.wall_s:.1f}"),
)


def table(plans: Sequence[Plan], results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    heads = [f"{plan.nodes:,} nodes" for plan in plans]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, text in _ROWS:
        lines.append(f"| {name} | " + " | ".join(text(result) for result in results) + " |")
    return "\n".join(lines)


def costs_table(costs: Sequence[DecisionCosts]) -> str:
    """What decisions cost, as a Markdown table."""
    lines = [
        "| nodes | a decision, µs | decisions/s, one process | a row that changed, µs | first question about a demand, ms |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {c.nodes:,} | {c.decision_us:.1f} | {1e6 / c.decision_us:,.0f} | {c.row_us:.1f} | {c.index_ms:.2f} |"
        for c in costs
    ]
    return "\n".join(lines)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=5.0, help="simulated time (default: 5)")
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of CPUs in use (default: 0.7)"
    )
    parser.add_argument(
        "--lease-s", type=float, default=4.0, help="mean time of a lease, s (default: 4)"
    )
    parser.add_argument("--homes", type=int, default=20, help="nodes with drivers (default: 20)")
    parser.add_argument(
        "--deaths", type=float, default=0.01, help="share of the machines that fail (default: 0.01)"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    plans = [
        Plan(
            nodes,
            options.seconds,
            options.load,
            options.lease_s,
            options.homes,
            options.deaths,
            seed=options.seed,
        )
        for nodes in options.nodes
    ]
    print(costs_table([measure(nodes) for nodes in options.nodes]), end="\n\n", flush=True)
    results = []
    for plan in plans:
        print(f"{plan.nodes:,} nodes, {plan.seconds:g} s …", file=sys.stderr, flush=True)
        world = World(plan)
        results.append(world.run())
        world.check()
    print(table(plans, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
