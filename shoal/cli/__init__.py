"""The command line: `shoal start`, `shoal stop`, `shoal status`, and what looks into a cluster: `list`, `get`, `summary`, `why`, `memory`.

Commands are for one user on one machine: they find nodes by the files in that user's session folders. What they say on standard output
is the result; what went wrong goes to standard error, with what to do about it, and the exit code says of which kind it was
(`shoal.cli.failures`).
"""

from __future__ import annotations

import click

from shoal.cli.looking import get, list_, summary, why
from shoal.cli.memory import memory
from shoal.cli.start import start
from shoal.cli.status import status
from shoal.cli.stop import stop
from shoal.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="shoal")
def main() -> None:
    """Start, look at and stop clusters of shoal."""


main.add_command(start)
main.add_command(status)
main.add_command(stop)
main.add_command(list_)
main.add_command(get)
main.add_command(summary)
main.add_command(why)
main.add_command(memory)
