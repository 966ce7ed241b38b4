"""What lives inside every driver and worker: ownership, submission, waiting.

Reading guide: `process` wires the parts of one process together; `owner` submits tasks and takes their replies, on workers that `leases` holds; `calls` does
the same for actors; `borrowing` speaks with other owners; `waiting` is `get`, `wait` and futures; `values` turns
objects into what the wire carries; `peers` and `node_link` are the connections; `remote` brings objects of other
nodes. `driver`, `launch`, `starting` and `joining` are how sessions and clusters are started and found.
"""
