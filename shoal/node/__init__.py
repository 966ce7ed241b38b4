"""The node daemon and its zygote: processes, leases, store quotas, logs of one node, and what it has to do with others.

Reading guide: `head` (how the process starts and ends), `daemon` (who gets which message), `workers` and `zygote` (processes), `leasing`,
`actors`, `store`, `logs`, `queries`. In a cluster `outside` puts the rest together: `doorkeeper` (who comes), `neighbours` (what is said
to other daemons), `hosting` (leases for their processes), `abroad` (ends of processes), `transfer` (objects). `control_way` leads to the
control store, wherever that is.
"""
