"""The behaviours, by section of the protocol notes. Importing this enters them all, in the order of the table."""

from tests.conformance.rows import device, handshake, keypairs, marks, outgoing, process, roaming, timers, transport, uapi  # noqa: F401
