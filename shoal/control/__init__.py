"""The control store: what the cluster knows as a whole (actors and names, keys and values, jobs, nodes).

It is on no hot path: tasks, results and references never come here.

- `link`: the narrow way by which nodes reach it;
- `store`: the shell over the pure directories of `shoal.core`;
- `journal`: nothing is done before what it follows from is written down;
- `storage`: where that is written, in memory, SQLite or Redis;
- `restoring`: what is written, and how a store begins with it.
"""
