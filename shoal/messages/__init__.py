"""Every message on the wire: msgspec structs, one file a conversation.

- `values`: how an object's value or place is described inside other messages;
- `handshake`: the first frames of every connection;
- `peer`: between two processes that run user code (tasks, actor calls, objects, borrowing);
- `node`: between a process that runs user code and its node daemon (leases, actors, quotas, queries);
- `zygote`: between the node daemon and the process that forks its workers.

All are `array_like`, so a message is a MessagePack array whose first element is its tag; within one conversation tags
are unique. Pickled user data appears only in fields of type `bytes`, and daemons never unpickle it.
"""
