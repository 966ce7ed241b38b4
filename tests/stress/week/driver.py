"""One driver, a program of its own: `python -m tests.stress.week.driver JSON`; started by `cluster`, with which it speaks in lines of JSON.

Standard output: `{"phase": "load" | "dropped", …}`, once a second while there is load, with what was done and which actors it has.
Standard input: nothing but its end, at which this program leaves the cluster and ends, whatever it is at.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from typing import Any, Final

import shoal
from shoal.runtime import current_process
from tests.stress.week.load import PATIENCE_S, Load, Share

_SAY_S: Final = 1.0
_LOOK_S: Final = 0.05


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[1])
    over = threading.Event()
    threading.Thread(target=_await_end, args=(over,), name="end of input", daemon=True).start()
    shoal.init(options["address"], log_to_driver=False)
    try:
        load = Load(Share(**options["share"]))
        said = 0.0
        while not over.is_set() and load.step():
            if time.monotonic() - said > _SAY_S:
                said = time.monotonic()
                _say(phase="load", roles=load.roles(), **load.facts())
        load.end()
        facts = load.facts()
        del load
        _say(phase="dropped", left=_known_objects(over), **facts)
        over.wait()
    finally:
        shoal.shutdown()


def _await_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def _known_objects(over: threading.Event) -> list[str]:
    """What this process still knows of; empty as soon as it is nothing."""
    process: Any = current_process.require()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        gc.collect()
        with process.lock:
            process.settle()
            process.objects.check()
            known = [repr(entry) for entry in process.objects.entries.values()]
        if not known or over.is_set() or time.monotonic() > deadline:
            return known[:20]
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
