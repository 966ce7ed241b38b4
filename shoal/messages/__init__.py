"""Every message on the wire: msgspec structs, one file a conversation.

- `values`: how an object's value or place is described inside other messages;
- `handshake`: the first frames of every connection;
- `peer`: between two processes that run user code (tasks, actor calls, objects, borrowing);
- `node`: between a process that runs user code and its node daemon (leases, actors, queries); `stores`: the part about the object store;
- `zygote`: between the node daemon and the process that forks its workers;
- `boot`: how processes are started, and what nodes leave in files for those who look for them;
- `control`: between a node daemon and the control store; `membership`: how that travels when the two are processes;
- `neighbours`: between the daemons of two nodes; `transfer`: about objects that are at another node;
- `state`: what a cluster tells about itself when it is asked, and how the question travels;
- `placement`: strategies, rows and placement groups, as parts of the others;
- `records`: what the control store writes down.

All are `array_like`, so a message is a MessagePack array whose first element is its tag; within one conversation tags
are unique. Pickled user data appears only in fields of type `bytes`, and daemons never unpickle it.
"""
