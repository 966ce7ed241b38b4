"""How messages cross sockets.

- `framing`, `handshake`: sans-I/O, shared by every transport;
- `reactor`, `connection`: the hot path of drivers and workers (plain sockets, epoll, no asyncio);
- `aio`: the asyncio transport of the daemons;
- `session`: where the sockets of a session are; `descriptors`: how many a process may have.
"""
