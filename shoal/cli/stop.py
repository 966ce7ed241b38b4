"""`shoal stop`: end what `shoal start` has started on this machine, for this user. Sessions of `shoal.init()` are their programs' own."""

from __future__ import annotations

import time

import click

from shoal.cli.ending import end_control, end_node, end_starting, tell_to_end
from shoal.cli.failures import told
from shoal.runtime.joining import FoundControl, FoundNode, find_controls, find_nodes
from shoal.runtime.session_folder import session_root, sweep_dead_sessions
from shoal.runtime.starters import end_starters, find_starting


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill at once.")
@click.option(
    "-g",
    "--grace-period",
    type=click.FloatRange(0),
    default=16.0,
    show_default=True,
    help="Seconds that processes may take to end before they are killed.",
)
@click.option(
    "--temp-dir", help="Where session folders are. [default: $SHOAL_TMPDIR, /tmp/shoal-UID]"
)
def stop(force: bool, grace_period: float, temp_dir: str | None) -> None:
    """End all nodes on this machine that `shoal start` has started, and the control store, if it is here."""
    with told():
        root = session_root(temp_dir)
        deadline = time.monotonic() + (0.0 if force else grace_period)
        starting = find_starting(root)
        end_starters(starting, deadline)
        # Some of it may serve since: then it is found as such.
        nodes = [node for node in find_nodes(root) if not node.file.starter_pid]
        controls = [c for c in find_controls(root) if _is_left_to_itself(c)]
        serving = {node.directory for node in nodes} | {each.directory for each in controls}
        starting = [each for each in starting if each.directory not in serving]
        killed = sum(end_starting(each, deadline - time.monotonic()) for each in starting)
        killed += _stop_nodes(nodes, deadline) + _stop_controls(controls, deadline)
        sweep_dead_sessions(root)
    node_count = len(nodes) + sum(each.is_node for each in starting)
    control_count = len(controls) + sum(not each.is_node for each in starting)
    if not node_count and not control_count:
        click.echo(
            f"Nothing to stop: no node of this user runs on this machine (as {root} has it)."
        )
        return
    click.echo(
        f"Stopped {_counted(node_count, 'node')} and {_counted(control_count, 'control store')}."
    )
    if killed:
        how = "at once" if force else f"after {grace_period:g} s"
        click.echo(f"{_counted(killed, 'process')} had to be killed {how}.", err=not force)


def _is_left_to_itself(control: FoundControl) -> bool:
    # Dead ones too: only their folders are left. One that has not said a word is just starting (`find_starting`).
    return control.file is not None and not control.file.starter_pid


def _stop_nodes(nodes: list[FoundNode], deadline: float) -> int:
    """End nodes, all at the same time; how many were killed."""
    if time.monotonic() < deadline:
        for node in nodes:
            tell_to_end(node.directory, node.file.pid)
    return sum(end_node(node, deadline - time.monotonic(), told=True) for node in nodes)


def _stop_controls(controls: list[FoundControl], deadline: float) -> int:
    """End control stores, after the nodes, which say goodbye to them; how many were killed."""
    return sum(end_control(control, deadline - time.monotonic()) for control in controls)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"
