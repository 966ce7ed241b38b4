"""The control store: what the cluster knows as a whole (actors and names, keys and values, jobs, nodes).

It is on no hot path: tasks, results and references never come here.

- `link`: the narrow way by which nodes reach it; `remote_link`: that way, to another process;
- `main`, `server`, `sessions`: the control store as a process of its own, its port, and its conversation with each node;
- `store`: the shell over the pure directories of `shoal.core`; beside it the tables `nodes`, `jobs`, `keys` and `history`;
- `placing`: on which node an actor is to live;
- `journal`: nothing is done before what it follows from is written down;
- `storage`: where that is written, in memory, SQLite or Redis;
- `restoring`: what is written, and how a store begins with it.
"""
