"""Objects between nodes: the daemon gets copies of what its clients want, and gives others what is here.

::

    client ──Pull──► Transfers ─► core.pulls ──Fetch──► Attempt (a thread) ──Ask──► the daemon there
                        ▲  │                                ▲   │ recv_into the block
                        │  └─ arena, quota                  │   ▼
                        │                                Incoming ──► also to others, as it arrives
    a daemon ──Ask──► Serving (a thread) ─► core.uploads
                         └── sendfile from the file of the block ──► that daemon

`service` is the part in the event loop, which owns both cores; `pulling`, `serving` and `telling` are what the threads do; `links` are
their connections, `blocks` the memory at either end. Nothing here is loaded by a session of one machine.
"""
