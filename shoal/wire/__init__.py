"""How messages cross sockets.

- `framing`, `handshake`: sans-I/O, shared by every transport;
- `reactor`, `connection`: the hot path of drivers and workers (plain sockets, epoll, no asyncio);
- `aio`: the asyncio transport of the daemons;
- `addresses`: how processes are called; `door`, `doorway`: how a node with one port takes connections to each of them;
- `tls`, `tls_stream`: TLS on connections between nodes;
- `session`: where the sockets of a session are; `descriptors`: how many a process may have.
"""
