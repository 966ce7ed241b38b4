"""What commands fail with: a text that says what happened and what to do, and an exit code for scripts.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | the command line is wrong (as click has it) |
| 3 | nobody answers at the address, or nothing runs |
| 4 | refused: token, version, TLS or name do not fit the cluster |
| 5 | it runs already, or the port is taken |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from shoal.errors import AuthenticationError, ShoalError
from shoal.runtime.starting import PortError, RunsAlready


class Failure(click.ClickException):
    """A command has failed; the text is for the user."""

    exit_code = 1


class Unreachable(Failure):
    """Nobody answers, or nothing runs."""

    exit_code = 3


class Refused(Failure):
    """What the user has does not fit the cluster."""

    exit_code = 4


class Taken(Failure):
    """There is something else where this was to be."""

    exit_code = 5


@contextmanager
def told() -> Iterator[None]:
    """Make failures of what follows out of the errors that users can do something about."""
    try:
        yield
    except AuthenticationError as error:
        raise Refused(str(error)) from error
    except (PortError, RunsAlready) as error:
        raise Taken(str(error)) from error
    except ConnectionError as error:
        raise Unreachable(str(error)) from error
    except OSError as error:
        # PermissionErrors of ours come with a whole sentence.
        text = str(error) if error.errno is None else f"{error.strerror}: {error.filename}"
        raise Failure(text) from error
    except (ShoalError, ValueError) as error:
        raise Failure(str(error)) from error
