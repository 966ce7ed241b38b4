"""Runtime environments as every process combines them: canonical JSON in, canonical JSON out."""

from __future__ import annotations

import json
from functools import lru_cache


@lru_cache(maxsize=1024)
def merge_envs(parent: str, child: str) -> str:
    """The environment of a task or actor inside that of its job or parent.

    The child's keys go before the parent's; `env_vars` are merged, the child's again first.
    """
    if not child or not parent:
        return child or parent
    outer, inner = json.loads(parent), json.loads(child)
    merged = {**outer, **inner}
    variables = {**outer.get("env_vars", {}), **inner.get("env_vars", {})}
    if variables:
        merged["env_vars"] = dict(sorted(variables.items()))
    return json.dumps(merged, sort_keys=True)
