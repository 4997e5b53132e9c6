"""The behaviours, by section of the protocol notes. Importing this enters them all, in the order of the table."""

from tests.conformance.rows import handshake, transport  # noqa: F401
