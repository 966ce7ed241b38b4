"""The version of the package and of the wire protocol.

`WIRE_VERSION` changes whenever a message changes its shape; two processes with different numbers refuse each
other during the handshake, by name.
"""

__version__ = "0.1.0"

WIRE_VERSION = 1
