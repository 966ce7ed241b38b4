"""The control store: what the cluster knows as a whole (actors and names, keys and values, jobs, nodes).

It is on no hot path: tasks, results and references never come here.

- `link`: the narrow way by which nodes reach it;
- `store`: the shell over the pure directories of `shoal.core`;
- `storage`: where it writes down what must outlive it.
"""
