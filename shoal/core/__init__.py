"""Pure state machines: every decision of the protocols, without I/O, clocks, threads or logging.

| file | whose decisions |
|---|---|
| `references` | what a process owns or borrows, and when it may go |
| `tasks` | where an owner's tasks run, and what follows when a worker is lost |
| `calls` | the order of calls to an actor, and what follows when it restarts |
| `resources`, `leases`, `pool` | what a node hands out, to whom, on which worker |
| `view`, `candidates`, `policy` | which node is asked for a lease, or gets an actor |
| `forwarding` | where a lease request is, in a cluster, until it is granted |
| `groups`, `bundle_placing`, `bundles` | what is reserved on which nodes for placement groups, and what each keeps for them |
| `pulls`, `uploads` | which objects of other nodes come here, and who gets those of this node |
| `actors` | the life of actors, their names, who is told |
| `membership` | which nodes belong to the cluster, and which are dead |
| `streams` | what is said again when a connection breaks, and what is superseded |
| `quotas`, `spilling` | who may put how many bytes into the object store, and who writes to disk when it is full |
"""
