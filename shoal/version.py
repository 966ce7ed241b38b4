"""The version of the package and of the wire protocol.

`WIRE_VERSION` changes with the first release whose messages have another shape than those of the release before; two processes
with different numbers refuse each other during the handshake, by name. Between releases it stays as it is, so a cluster runs one
checkout on all its machines.
"""

__version__ = "0.1.0"

WIRE_VERSION = 1
