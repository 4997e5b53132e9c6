"""Why something was thrown away: one word a reason, the same in counters, metrics, logs and tests."""

from enum import Enum


class Drop(Enum):
    """A reason; its value is the label of ``wgpy_drops_total{reason=}``. Each counts datagrams, or packets on the way out."""

    __hash__ = object.__hash__  # Enum's own is a function in Python, and floods are counted, too

    # inbound, before a peer is known
    UNKNOWN_MESSAGE = "unknown_message"
    """Not one of the four messages, or not of its length."""
    UNKNOWN_INDEX = "unknown_index"
    """The receiver index names no session or handshake of ours."""
    BAD_MAC1 = "bad_mac1"
    HANDSHAKE_QUEUE_FULL = "handshake_queue_full"
    NO_PRIVATE_KEY = "no_private_key"
    UNDER_LOAD = "under_load"
    """No valid mac2 while under load: a cookie reply was sent instead."""
    RATE_LIMITED = "rate_limited"
    BAD_HANDSHAKE = "bad_handshake"
    """A handshake message that does not authenticate, or from an unknown static key."""
    REPLAYED_INITIATION = "replayed_initiation"
    """An initiation not newer than the last one of its peer."""
    INITIATION_FLOOD = "initiation_flood"
    """A second initiation of a peer within 20 ms."""
    BAD_COOKIE_REPLY = "bad_cookie_reply"
    # inbound, transport data
    EXPIRED_KEYPAIR = "expired_keypair"
    BAD_TAG = "bad_tag"
    REPLAYED = "replayed"
    MALFORMED_PACKET = "malformed_packet"
    """Authenticated, but what is inside is no IP packet of a possible length."""
    NOT_ALLOWED_SOURCE = "not_allowed_source"
    """The inner source address belongs to another peer or to none."""
    INTERFACE_REFUSED = "interface_refused"
    """The TUN did not take a packet: its queue is full, or it is down."""
    # outbound
    NOT_IP = "not_ip"
    BAD_OFFLOAD = "bad_offload"
    """The TUN's virtio header does not fit the packet behind it."""
    NO_PEER = "no_peer"
    """No allowed IP holds the destination."""
    NO_ENDPOINT = "no_endpoint"
    LOOP = "loop"
    """Our own datagram: its peer's endpoint lies behind this interface."""
    STAGED_FULL = "staged_full"
    """The oldest staged packet made room for a newer one."""
    NO_SESSION = "no_session"
    """Staged packets given up with their handshake."""
    SEND_FAILED = "send_failed"
    """The socket did not take a datagram."""
    INTERFACE_DOWN = "interface_down"
