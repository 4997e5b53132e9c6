"""The numbers and strings of the protocol, spelled as in the paper (5.4 and 6.1). Times are in seconds."""

from typing import Final

# 5.4.1: what the two ends agree on before they have spoken.
CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"

# Lengths, in bytes.
KEY_LENGTH: Final = 32
HASH_LENGTH: Final = 32
TAG_LENGTH: Final = 16
MAC_LENGTH: Final = 16
COOKIE_LENGTH: Final = 16
COOKIE_NONCE_LENGTH: Final = 24
TIMESTAMP_LENGTH: Final = 12

# 5.4: the four messages, by type, and how long they are.
MESSAGE_INITIATION: Final = 1
MESSAGE_RESPONSE: Final = 2
MESSAGE_COOKIE_REPLY: Final = 3
MESSAGE_TRANSPORT_DATA: Final = 4
INITIATION_LENGTH: Final = 148
RESPONSE_LENGTH: Final = 92
COOKIE_REPLY_LENGTH: Final = 64
MESSAGE_LENGTHS: Final = {
    MESSAGE_INITIATION: INITIATION_LENGTH,
    MESSAGE_RESPONSE: RESPONSE_LENGTH,
    MESSAGE_COOKIE_REPLY: COOKIE_REPLY_LENGTH,
}
"""The messages that have one length."""
TRANSPORT_HEADER_LENGTH: Final = 16
TRANSPORT_OVERHEAD: Final = TRANSPORT_HEADER_LENGTH + TAG_LENGTH
"""What transport data adds to a packet. A message of just this length is a keepalive."""

# 6.1
REKEY_AFTER_MESSAGES: Final = 2**60
REPLAY_WINDOW: Final = 8192 - 64
"""How far behind the greatest counter a counter may be. The kernel's ring has 8192 bits, of which 64 are being refilled."""
REJECT_AFTER_MESSAGES: Final = 2**64 - 1 - REPLAY_WINDOW - 1
"""2**64 - 8130, the kernel's value. The paper says 2**64 - 2**13 - 1, which is 63 less; nobody has ever sent so many."""
REKEY_AFTER_TIME: Final = 120.0
REJECT_AFTER_TIME: Final = 180.0
REKEY_ATTEMPT_TIME: Final = 90.0
REKEY_TIMEOUT: Final = 5.0
KEEPALIVE_TIMEOUT: Final = 10.0

# What the paper says in words, and the kernel in numbers.
REKEY_TIMEOUT_JITTER: Final = 1 / 3
"""6.4: retransmissions are spread by up to this much, so that two ends do not initiate at once for ever."""
MAX_TIMER_HANDSHAKES: Final = 18
"""REKEY_ATTEMPT_TIME / REKEY_TIMEOUT. With the kernel's way of counting, 20 initiations are sent in all."""
ZERO_KEY_MATERIAL_AFTER_TIME: Final = 3 * REJECT_AFTER_TIME
INITIATION_INTERVAL: Final = 1 / 50
"""A responder consumes at most one initiation of a peer in this time."""
COOKIE_SECRET_MAX_AGE: Final = 120.0
COOKIE_SECRET_LATENCY: Final = 5.0
"""A cookie is held for this much less than the secret behind it lives: it has to travel."""

# What the device around one peer keeps to (5.3, and the kernel's queues).
MAX_STAGED_PACKETS: Final = 128
UNDER_LOAD_TIME: Final = 1.0
"""How long one stays under load after the queue of handshake messages was last too long."""
