"""The two clocks that shells read, under one roof, so that nothing else calls `time` for them.

Cores never import this: they take `now` as an argument. Both clocks count nanoseconds as integers.
"""

from time import monotonic, monotonic_ns, perf_counter_ns, time, time_ns

__all__ = ["monotonic", "monotonic_ns", "perf_counter_ns", "time", "time_ns"]
