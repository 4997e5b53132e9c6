"""§5.3, §5.4.4 and §5.4.7: both MACs and the life of a cookie."""

from hypothesis import example, given
from hypothesis import strategies as st

from noise.cookie import CookieChecker, CookieHolder
from noise.handshake import LocalStatic, RemoteStatic
from noise.messages import CookieReply, HandshakeInitiation

INITIATOR, RESPONDER = LocalStatic(bytes(range(1, 33))), LocalStatic(bytes(range(33, 65)))
MESSAGE = HandshakeInitiation(0x11223344, b"e" * 32, b"s" * 48, b"t" * 28).pack()
HERE, ELSEWHERE = b"\xc0\x00\x02\x01\xca\x6c", b"\xc0\x00\x02\x02\xca\x6c"
NONCE, SECRET, NEXT_SECRET = bytes(range(24)), b"1" * 32, b"2" * 32


def checker() -> CookieChecker:
    return CookieChecker(RESPONDER)


def holder() -> CookieHolder:
    return CookieHolder(RemoteStatic(INITIATOR, RESPONDER.public))


def answer(issuer: CookieChecker, message: bytes, now: float, secret: bytes = SECRET) -> bytes:
    """A cookie reply, and the renewal that is due before it."""
    if issuer.secret_is_old(now):
        issuer.renew_secret(secret, NONCE, now)
    return issuer.create_cookie_reply(message, HERE)


def exchanged(now: float = 0.0) -> tuple[CookieChecker, CookieHolder]:
    """A responder under load, and an initiator that got its cookie."""
    issuer, sender = checker(), holder()
    reply = answer(issuer, sender.add_macs(MESSAGE, now), now)
    assert sender.consume_cookie_reply(reply, now)
    return issuer, sender


# --- Known answers ---


def test_mac1_cookie_reply_and_mac2_are_the_known_ones(vectors: dict[str, bytes]) -> None:
    issuer = CookieChecker(LocalStatic(vectors["responder_private"]))
    sender = CookieHolder(RemoteStatic(LocalStatic(vectors["initiator_private"]), vectors["responder_public"]))
    initiation = vectors["initiation"]
    without_macs = initiation[:-32] + bytes(32)

    assert sender.add_macs(without_macs, 0.0) == initiation
    assert issuer.mac1_is_valid(initiation)
    issuer.renew_secret(vectors["cookie_secret"], vectors["cookie_nonce"], 0.0)
    reply = issuer.create_cookie_reply(initiation, vectors["cookie_address"])
    assert reply == vectors["cookie_reply"]
    assert sender.consume_cookie_reply(reply, 0.0)
    assert sender.add_macs(without_macs, 0.0) == initiation[:-16] + vectors["initiation_mac2"]


def test_the_mac1_of_a_response_is_the_initiators_to_check(vectors: dict[str, bytes]) -> None:
    initiator = LocalStatic(vectors["initiator_private"])
    sender = CookieHolder(RemoteStatic(LocalStatic(vectors["responder_private"]), initiator.public))

    assert sender.add_macs(vectors["response"][:-32] + bytes(32), 0.0) == vectors["response"]
    assert CookieChecker(initiator).mac1_is_valid(vectors["response"])


# --- mac1 ---


@given(st.integers(0, 8 * (148 - 16) - 1))
def test_mac1_covers_every_bit_before_it(bit: int) -> None:
    message = bytearray(holder().add_macs(MESSAGE, 0.0))
    message[bit // 8] ^= 1 << bit % 8

    assert not checker().mac1_is_valid(bytes(message))


def test_mac1_is_for_one_receiver() -> None:
    message = holder().add_macs(MESSAGE, 0.0)

    assert checker().mac1_is_valid(message)
    assert not CookieChecker(INITIATOR).mac1_is_valid(message)


# --- mac2 ---


def test_without_a_cookie_mac2_is_zero_and_not_valid() -> None:
    issuer, sender = checker(), holder()
    message = sender.add_macs(MESSAGE, 0.0)

    assert message[-16:] == bytes(16)
    assert not issuer.mac2_is_valid(message, HERE, 0.0)


def test_before_its_first_reply_a_checker_has_no_secret_anybody_could_know() -> None:
    """Without the check of age, a cookie under the all-zero secret would do."""
    issuer, forger = checker(), holder()
    all_zero = checker()
    forger.consume_cookie_reply(answer(all_zero, forger.add_macs(MESSAGE, 0.0), 0.0, bytes(32)), 0.0)

    assert not issuer.mac2_is_valid(forger.add_macs(MESSAGE, 0.0), HERE, 0.0)


def test_with_the_cookie_of_a_reply_mac2_is_valid_from_that_address_only() -> None:
    issuer, sender = exchanged()
    message = sender.add_macs(MESSAGE, 1.0)

    assert issuer.mac1_is_valid(message)
    assert issuer.mac2_is_valid(message, HERE, 1.0)
    assert not issuer.mac2_is_valid(message, ELSEWHERE, 1.0)
    assert not issuer.mac2_is_valid(message, HERE[:-2] + b"\xff\xff", 1.0), "the port counts"


@given(st.integers(0, 8 * 148 - 1))
def test_mac2_covers_every_bit_before_it_and_mac1_too(bit: int) -> None:
    issuer, sender = exchanged()
    message = bytearray(sender.add_macs(MESSAGE, 1.0))
    message[bit // 8] ^= 1 << bit % 8

    assert not issuer.mac2_is_valid(bytes(message), HERE, 1.0)


# --- The life of a cookie and of a secret ---


def test_a_sender_uses_a_cookie_for_115_seconds() -> None:
    _, sender = exchanged(now=1000.0)

    assert sender.add_macs(MESSAGE, 1114.9)[-16:] != bytes(16)
    assert sender.add_macs(MESSAGE, 1115.0)[-16:] == bytes(16)


def test_a_secret_is_worth_nothing_after_120_seconds() -> None:
    issuer, sender = exchanged(now=1000.0)
    message = sender.add_macs(MESSAGE, 1100.0)

    assert issuer.mac2_is_valid(message, HERE, 1119.9)
    assert not issuer.mac2_is_valid(message, HERE, 1120.0)


def test_a_secret_is_renewed_by_a_reply_when_it_is_120_seconds_old() -> None:
    issuer, sender = exchanged(now=1000.0)
    old = sender.add_macs(MESSAGE, 1100.0)

    answer(issuer, old, 1119.9, NEXT_SECRET)
    assert issuer.mac2_is_valid(old, HERE, 1119.9), "not yet"

    reply = answer(issuer, old, 1120.0, NEXT_SECRET)
    assert not issuer.mac2_is_valid(old, HERE, 1120.0)
    assert sender.consume_cookie_reply(reply, 1120.0)
    assert issuer.mac2_is_valid(sender.add_macs(MESSAGE, 1120.0), HERE, 1120.0)


# --- Cookie replies ---


def test_a_reply_goes_to_the_index_the_message_came_from() -> None:
    reply = answer(checker(), holder().add_macs(MESSAGE, 0.0), 0.0)
    unpacked = CookieReply.unpack(reply)

    assert len(reply) == 64
    assert unpacked is not None
    assert unpacked.receiver_index == 0x11223344
    assert unpacked.nonce == NONCE


@example(2**64 - 1, 2)
@given(st.integers(0, 2**64 - 1), st.integers(1, 5))
def test_no_two_replies_have_one_nonce_and_all_are_good(end: int, replies: int) -> None:
    """Not even when its last 8 bytes, which count, begin again at 0."""
    issuer, nonces = checker(), set()
    issuer.renew_secret(SECRET, NONCE[:16] + end.to_bytes(8), 0.0)

    for _ in range(replies):
        sender = holder()
        reply = issuer.create_cookie_reply(sender.add_macs(MESSAGE, 0.0), HERE)
        assert sender.consume_cookie_reply(reply, 0.0)
        nonces.add(reply[8:32])

    assert len(nonces) == replies
    assert {nonce[:16] for nonce in nonces} == {NONCE[:16]}


def test_each_mac1_admits_one_reply() -> None:
    issuer, sender = checker(), holder()
    reply = answer(issuer, sender.add_macs(MESSAGE, 0.0), 0.0)

    assert sender.consume_cookie_reply(reply, 0.0)
    assert not sender.consume_cookie_reply(reply, 100.0)
    assert sender.add_macs(MESSAGE, 115.0)[-16:] == bytes(16), "the replay did not make the cookie younger"


def test_a_reply_to_an_earlier_message_is_refused() -> None:
    issuer, sender = checker(), holder()
    early = answer(issuer, sender.add_macs(MESSAGE, 0.0), 0.0)
    sender.add_macs(b"\x01\0\0\0" + b"later" + MESSAGE[9:], 5.0)

    assert not sender.consume_cookie_reply(early, 5.0)


def test_who_sent_nothing_takes_no_cookie() -> None:
    reply = answer(checker(), holder().add_macs(MESSAGE, 0.0), 0.0)

    assert not holder().consume_cookie_reply(reply, 0.0)


@given(st.integers(0, 8 * 64 - 1).filter(lambda bit: not 32 <= bit < 64))
def test_a_reply_with_one_bit_flipped_changes_nothing(bit: int) -> None:
    """The receiver index is not covered: it only finds the peer."""
    issuer, sender = checker(), holder()
    reply = answer(issuer, sender.add_macs(MESSAGE, 0.0), 0.0)
    changed = bytearray(reply)
    changed[bit // 8] ^= 1 << bit % 8

    assert not sender.consume_cookie_reply(bytes(changed), 0.0)
    assert sender.consume_cookie_reply(reply, 0.0), "the true one is still welcome"


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_no_reply(message: bytes) -> None:
    sender = holder()
    sender.add_macs(MESSAGE, 0.0)

    assert not sender.consume_cookie_reply(message, 0.0)
    assert not sender.consume_cookie_reply(b"\x03\0\0\0" + message.ljust(60, b"\0")[:60], 0.0)


def test_no_secret_is_in_a_repr() -> None:
    issuer, sender = exchanged()

    assert "1111" not in repr(issuer)
    assert "_cookie=" not in repr(sender)
    assert "_last_mac1" not in repr(sender)
