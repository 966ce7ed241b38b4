"""What lives inside every driver and worker: ownership, submission, waiting.

Reading guide: `process` wires the parts of one process together; `submitting` is the way in for tasks and calls; `owner` pushes tasks to
workers that `leases` holds, and takes the replies; `actors` does the same for calls; `borrowing` speaks with other owners; `waiting` is
`get`, `wait` and futures; `values` turns objects into what the wire carries; `peers`, `node_link` and `node_messages` are the connections,
`deaths` what follows when another process ends; `remote` brings objects of other nodes. `driver`, `launch`, `starting` and `joining` are
how sessions and clusters are started and found.
"""
