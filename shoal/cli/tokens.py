"""The token of a cluster, as users keep it: a text in `$SHOAL_TOKEN`, in the file that `$SHOAL_TOKEN_FILE` names, or in
`~/.shoal/token`, which the first `shoal start --head` makes.

Guarantees: a token is never taken from a command line, which others could read in a list of processes; a file that others may read is
refused.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal.cli.failures import Failure, Refused
from shoal.wire.session import private

SHORTEST: Final = 16
"""Characters that a token must have. One that is made here has 64."""


def default_file() -> Path:
    """Where a user's token is, unless the environment says otherwise."""
    return Path.home() / ".shoal" / "token"


def where(environ: Mapping[str, str] = os.environ) -> str:
    """Where the token comes from, for people."""
    if environ.get("SHOAL_TOKEN"):
        return "$SHOAL_TOKEN"
    named = environ.get("SHOAL_TOKEN_FILE")
    return named or str(default_file())


def find_token(environ: Mapping[str, str] = os.environ, *, make: bool = False) -> bytes:
    """The user's token. `make`: if there is none anywhere, draw one and keep it.

    Raises:
        Failure: there is none, or it cannot be used; says what to do.
    """
    text = environ.get("SHOAL_TOKEN")
    if text:
        return _checked(text, "$SHOAL_TOKEN")
    named = environ.get("SHOAL_TOKEN_FILE")
    path = Path(named) if named else default_file()
    try:
        return _checked(_read(path), str(path))
    except FileNotFoundError:
        if make and not named:
            return _make(path)
    if named:
        raise Refused(f"$SHOAL_TOKEN_FILE names {path}, which does not exist")
    raise Refused(
        f"there is no token: copy {path} from the machine of the cluster's head (mode 0600), or put the token into $SHOAL_TOKEN"
    )


def _checked(text: str, source: str) -> bytes:
    token = text.strip()
    if len(token) < SHORTEST:
        raise Refused(
            f"the token in {source} has {len(token)} characters, and one that nobody can guess has {SHORTEST} at the least: make one with "
            "`openssl rand -hex 32`"
        )
    return token.encode()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            if found.st_uid not in {os.getuid(), 0} or stat.S_IMODE(found.st_mode) & 0o077:
                raise Refused(
                    f"{path} can be read or changed by others, so what is in it is no secret: chmod 600 {path}, and draw a new token if somebody "
                    "may have seen it"
                )
            return file.read()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Refused(f"the token in {path} cannot be read: {why}") from None


def _make(path: Path) -> bytes:
    token = secrets.token_hex(32)
    half_made = f"{path}.{os.getpid()}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(half_made, "w", encoding="ascii", opener=private) as file:
            file.write(f"{token}\n")
        try:
            # Unlike a rename, this does not replace what another start has made meanwhile.
            os.link(half_made, path)
        except FileExistsError:
            token = _read(path)
        finally:
            os.unlink(half_made)
    except OSError as error:
        raise Failure(
            f"the token cannot be kept in {path}: {error.strerror}. Set $SHOAL_TOKEN, or $SHOAL_TOKEN_FILE to a file elsewhere"
        ) from None
    return _checked(token, str(path))
