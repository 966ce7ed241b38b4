"""A simulated cluster: the real decisions of daemons and control store, with a clock, a network and nodes that are not real.

`make sim` runs it with 100, 1,000 and 10,000 nodes and prints what it costs and how well it works; `docs/scale.md` says what the figures
mean. One seed is one history, the same on every machine, but for the figures that measure this machine.

Real: `core.forwarding.Home`, `core.view`, `core.policy`, `core.membership`, `core.streams.Board`, and the rows, which are encoded as they
are for the wire. Simulated: the lease queue of a node (first come, first served), the workers, the connections, and the time
that the control store takes (`world.Costs`).
"""
