"""TAI64N, the twelve bytes of wall time in an initiation (paper section 5.1).

An initiation must carry a greater timestamp than the last one consumed from that peer, so a recorded one is worth nothing.
Nothing else is read from it: the clocks of two peers need not agree, they only must not go backwards.
"""

from struct import Struct

_TAI64N = Struct(">QI")
_UNIX_EPOCH = 0x400000000000000A
"""TAI64 at 1970-01-01 UTC, as everybody who ignores leap seconds writes it."""
_WHITENING_MASK = ~(2**24 - 1)
"""A precise clock in the clear of a decrypted handshake would tell of the machine's state. One fiftieth of a second, the
pace at which initiations are consumed anyway, rounded down to a power of two, is as fine as it gets: 16.8 ms."""


def timestamp(unix_nanoseconds: int) -> bytes:
    """The timestamp of a moment, given in nanoseconds since 1970 (``time.time_ns()``). They compare as bytes do."""
    seconds, nanoseconds = divmod(unix_nanoseconds, 10**9)
    return _TAI64N.pack(_UNIX_EPOCH + seconds, nanoseconds & _WHITENING_MASK)
