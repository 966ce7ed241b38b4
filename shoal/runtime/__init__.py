"""What lives inside every driver and worker: ownership, submission, waiting.

Reading guide: `process` wires the parts of one process together; `owner` submits tasks and takes their replies, on workers that `leases` holds; `calls` does
the same for actors; `borrowing` speaks with other owners; `waiting` is `get`, `wait` and futures; `values` turns
objects into what the wire carries; `peers` and `node_link` are the connections.
"""
