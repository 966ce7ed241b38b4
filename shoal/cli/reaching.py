"""Which cluster a command is about, and a way to its control store: for those that only look."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from shoal.cli.failures import Unreachable
from shoal.cli.tokens import find_token
from shoal.config import load_config
from shoal.runtime.control_client import ControlClient
from shoal.runtime.joining import (
    AUTO,
    PROGRAM,
    Respondent,
    find_programs,
    find_respondent,
)
from shoal.runtime.session_folder import session_root
from shoal.wire.tls import Tls

_OPTIONS = (
    click.option(
        "--address",
        metavar="HOST:PORT|pid:PID",
        envvar="SHOAL_ADDRESS",
        default=AUTO,
        help="The cluster, or the program with a session of its own. [default: $SHOAL_ADDRESS, or the newest on this machine]",
    ),
    click.option(
        "--temp-dir", help="Where session folders are. [default: $SHOAL_TMPDIR, /tmp/shoal-UID]"
    ),
    click.option("--tls-cert", type=click.Path(), help="A certificate of the cluster (PEM)."),
    click.option("--tls-key", type=click.Path(), help="The certificate's key (PEM)."),
    click.option("--tls-ca", type=click.Path(), help="The cluster's authority (PEM)."),
)


def of_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which cluster it is about: the arguments of `reach`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def reach(
    address: str, temp_dir: str | None, **tls: str | None
) -> Iterator[tuple[Respondent, ControlClient]]:
    """Who answers questions, and a connection there."""
    root = session_root(temp_dir)
    try:
        found = find_respondent(AUTO if address in {"local", ""} else address, root)
    except ConnectionError as error:
        raise Unreachable(str(error)) from None
    if found.pid:
        _mention_others(found, root)
    # A node of the cluster on this machine knows how it is spoken with.
    given = {name: os.path.abspath(path) for name, path in tls.items() if path}
    config = load_config(given or found.tls)
    with ControlClient(found.place, found.token or find_token(), Tls.of(config)) as client:
        yield found, client


def _mention_others(found: Respondent, root: str) -> None:
    others = [node.file.starter_pid for node in find_programs(root)]
    more = ", ".join(f"--address={PROGRAM}{pid}" for pid in others if pid != found.pid)
    if more:
        click.echo(
            f"note: this is the session of the program with pid {found.pid}; for others: {more}",
            err=True,
        )
