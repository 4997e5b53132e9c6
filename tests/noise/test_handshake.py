"""§5.4.2-§5.4.5 with known answers, and everything that must make a handshake fail."""

import hmac
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise import crypto
from noise.constants import KEY_LENGTH
from noise.handshake import (
    HandshakeError,
    HandshakeFailure,
    InitiatorHandshake,
    LatestInitiation,
    LocalStatic,
    RemoteStatic,
    ResponderHandshake,
    TransportKeys,
    consume_initiation,
    consume_response,
    create_initiation,
    create_response,
)
from noise.messages import HandshakeInitiation, HandshakeResponse

NO_PRESHARED_KEY = bytes(KEY_LENGTH)
TIMESTAMP = bytes.fromhex("400000006592008001000000")
LOW_ORDER = b"\x01" + bytes(31)
MACS = 32

keys = st.binary(min_size=32, max_size=32).filter(any)


@dataclass
class Pair:
    """An initiator and a responder who know each other."""

    initiator: LocalStatic
    responder: LocalStatic

    def __post_init__(self) -> None:
        self.of_responder = RemoteStatic(self.initiator, self.responder.public)
        self.of_initiator = RemoteStatic(self.responder, self.initiator.public)

    def initiate(self, ephemeral: bytes = b"i" * 32) -> tuple[bytes, InitiatorHandshake]:
        return create_initiation(self.initiator, self.of_responder, ephemeral, 0x11223344, TIMESTAMP)

    def consume_initiation(self, message: bytes) -> ResponderHandshake:
        return consume_initiation(self.responder, message, {self.initiator.public: self.of_initiator}.get)

    def respond(
        self, handshake: ResponderHandshake, preshared_key: bytes = NO_PRESHARED_KEY, ephemeral: bytes = b"r" * 32
    ) -> tuple[bytes, TransportKeys]:
        return create_response(self.of_initiator, handshake, preshared_key, ephemeral, 0x55667788)

    def consume_response(
        self, handshake: InitiatorHandshake, message: bytes, preshared_key: bytes = NO_PRESHARED_KEY
    ) -> TransportKeys:
        return consume_response(self.initiator, self.of_responder, handshake, preshared_key, message)


PAIR = Pair(LocalStatic(bytes(range(1, 33))), LocalStatic(bytes(range(33, 65))))
INITIATION, INITIATED = PAIR.initiate()
CONSUMED = PAIR.consume_initiation(INITIATION)
RESPONSE, RESPONDER_KEYS = PAIR.respond(CONSUMED)


def flipped(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- Known answers ---


def test_the_known_handshake_comes_out_byte_for_byte(vectors: dict[str, bytes]) -> None:
    initiator, responder = LocalStatic(vectors["initiator_private"]), LocalStatic(vectors["responder_private"])
    of_responder, of_initiator = RemoteStatic(initiator, responder.public), RemoteStatic(responder, initiator.public)
    initiator_index = int.from_bytes(vectors["initiator_index"], "little")
    responder_index = int.from_bytes(vectors["responder_index"], "little")
    preshared_key = vectors["preshared_key"]

    initiation, initiated = create_initiation(
        initiator, of_responder, vectors["initiator_ephemeral_private"], initiator_index, vectors["timestamp"]
    )
    consumed = consume_initiation(responder, initiation, {initiator.public: of_initiator}.get)
    response, responder_keys = create_response(
        of_initiator, consumed, preshared_key, vectors["responder_ephemeral_private"], responder_index
    )
    initiator_keys = consume_response(initiator, of_responder, initiated, preshared_key, response)

    assert initiation[:-MACS] == vectors["initiation"][:-MACS]
    assert initiation[-MACS:] == bytes(MACS)
    assert (initiated.chaining_key, initiated.hash) == (
        vectors["chaining_key_after_initiation"],
        vectors["hash_after_initiation"],
    )
    assert (consumed.chaining_key, consumed.hash) == (initiated.chaining_key, initiated.hash)
    assert consumed.remote_static == initiator.public
    assert consumed.sender_index == initiator_index
    assert consumed.timestamp == vectors["timestamp"]
    assert response[:-MACS] == vectors["response"][:-MACS]
    assert response[-MACS:] == bytes(MACS)
    send_key, receive_key = vectors["initiator_send_key"], vectors["initiator_receive_key"]
    assert initiator_keys == TransportKeys(initiator_index, responder_index, True, send_key, receive_key)
    assert responder_keys == TransportKeys(responder_index, initiator_index, False, receive_key, send_key)


def test_the_static_keys_lead_to_the_known_answers(vectors: dict[str, bytes]) -> None:
    initiator, responder = LocalStatic(vectors["initiator_private"]), LocalStatic(vectors["responder_private"])
    of_responder, of_initiator = RemoteStatic(initiator, responder.public), RemoteStatic(responder, initiator.public)

    assert crypto.hash_(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s") == vectors["construction_hash"]
    assert responder.responder_hash == crypto.hash_(vectors["identifier_hash"] + responder.public)
    assert initiator.public == vectors["initiator_public"]
    assert responder.public == vectors["responder_public"]
    assert of_responder.static_static == of_initiator.static_static == vectors["static_static"]
    assert of_responder.mac1_key == responder.mac1_key == vectors["responder_mac1_key"]
    assert of_responder.cookie_key == responder.cookie_key == vectors["responder_cookie_key"]
    assert of_responder.responder_hash == responder.responder_hash


# --- What holds for all keys ---


@settings(max_examples=25)
@given(keys, keys, keys, keys, st.binary(min_size=32, max_size=32))
def test_both_ends_derive_the_same_keys_the_other_way_round(
    initiator: bytes, responder: bytes, initiator_ephemeral: bytes, responder_ephemeral: bytes, preshared_key: bytes
) -> None:
    pair = Pair(LocalStatic(initiator), LocalStatic(responder))

    initiation, initiated = pair.initiate(initiator_ephemeral)
    consumed = pair.consume_initiation(initiation)
    response, responder_keys = pair.respond(consumed, preshared_key, responder_ephemeral)
    initiator_keys = pair.consume_response(initiated, response, preshared_key)

    assert (initiator_keys.send_key, initiator_keys.receive_key) == (responder_keys.receive_key, responder_keys.send_key)
    assert (initiator_keys.local_index, initiator_keys.remote_index) == (0x11223344, 0x55667788)
    assert (responder_keys.local_index, responder_keys.remote_index) == (0x55667788, 0x11223344)
    assert initiator_keys.is_initiator
    assert not responder_keys.is_initiator
    assert initiator_keys.send_key != initiator_keys.receive_key


@given(st.binary(min_size=32, max_size=32).filter(any))
def test_the_preshared_key_matters_from_the_response_on(preshared_key: bytes) -> None:
    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_response(INITIATED, RESPONSE, preshared_key)

    assert failure.value.reason is HandshakeFailure.BAD_TAG


def kdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    """KDFn of the paper, spelled out again: T1 to Tn."""
    secret = hmac.digest(key, data, "blake2s")
    derived = [b""]
    for number in range(1, count + 1):
        derived.append(hmac.digest(secret, derived[-1] + bytes([number]), "blake2s"))
    return derived[1:]


@pytest.mark.parametrize("preshared_key", [NO_PRESHARED_KEY, b"p" * 32], ids=["none", "some"])
def test_the_preshared_key_is_mixed_in_also_when_there_is_none(preshared_key: bytes) -> None:
    """5.4.3: e, ee, se, psk, each into the chain. Two ends that both left the zeros out would agree with each other only."""
    ephemeral = crypto.public_key(b"r" * 32)
    chain = CONSUMED.chaining_key
    for mixed in (ephemeral, crypto.dh(b"r" * 32, CONSUMED.remote_ephemeral), crypto.dh(b"r" * 32, PAIR.initiator.public)):
        (chain,) = kdf(chain, mixed, 1)
    chain, mixed, key = kdf(chain, preshared_key, 3)

    response, responder_keys = PAIR.respond(CONSUMED, preshared_key)

    unpacked = HandshakeResponse.unpack(response)
    assert unpacked is not None
    hashed = crypto.hash_(crypto.hash_(CONSUMED.hash + ephemeral) + mixed)
    assert crypto.aead_unseal(key, 0, unpacked.encrypted_nothing, hashed) == b""
    assert [responder_keys.receive_key, responder_keys.send_key] == kdf(chain, b"", 2)


def test_a_failed_response_leaves_the_handshake_good_for_the_true_one() -> None:
    with pytest.raises(HandshakeError):
        PAIR.consume_response(INITIATED, flipped(RESPONSE, 8 * 50))

    assert PAIR.consume_response(INITIATED, RESPONSE).send_key == RESPONDER_KEYS.receive_key


def test_an_initiation_can_be_answered_twice_and_differently() -> None:
    """Nothing is kept in the consumed handshake: each response has its own ephemeral and its own keys."""
    _, other_keys = PAIR.respond(CONSUMED, ephemeral=b"R" * 32)

    assert other_keys.send_key != RESPONDER_KEYS.send_key


# --- What must fail ---


@given(st.integers(0, 8 * (148 - MACS) - 1))
def test_an_initiation_with_one_bit_flipped_is_refused(bit: int) -> None:
    """All but the sender index, which only mac1 protects; changing it makes the response miss its way."""
    message = flipped(INITIATION, bit)
    if 32 <= bit < 64:
        assert PAIR.consume_initiation(message).sender_index != 0x11223344
    else:
        with pytest.raises(HandshakeError):
            PAIR.consume_initiation(message)


@given(st.integers(0, 8 * (92 - MACS) - 1))
def test_a_response_with_one_bit_flipped_is_refused(bit: int) -> None:
    """All but the sender index, again: under the wrong one the responder would never get our data."""
    message = flipped(RESPONSE, bit)
    if 32 <= bit < 64:
        assert PAIR.consume_response(INITIATED, message).remote_index != 0x55667788
    else:
        with pytest.raises(HandshakeError):
            PAIR.consume_response(INITIATED, message)


@given(st.binary(max_size=200) | st.integers(0, 147).map(lambda length: INITIATION[:length]))
def test_what_is_no_initiation_is_malformed_or_forged(message: bytes) -> None:
    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_initiation(message)

    assert failure.value.reason is HandshakeFailure.MALFORMED


@given(st.binary(max_size=200) | st.integers(0, 91).map(lambda length: RESPONSE[:length]))
def test_what_is_no_response_is_malformed(message: bytes) -> None:
    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_response(INITIATED, message)

    assert failure.value.reason is HandshakeFailure.MALFORMED


@given(st.binary(min_size=144, max_size=144))
def test_random_initiations_are_refused(body: bytes) -> None:
    with pytest.raises(HandshakeError):
        PAIR.consume_initiation(b"\x01\0\0\0" + body)


def test_an_unknown_initiator_is_refused() -> None:
    with pytest.raises(HandshakeError) as failure:
        consume_initiation(PAIR.responder, INITIATION, lambda public: None)

    assert failure.value.reason is HandshakeFailure.UNKNOWN_PEER


def test_an_initiation_for_another_responder_is_refused() -> None:
    with pytest.raises(HandshakeError) as failure:
        consume_initiation(PAIR.initiator, INITIATION, {PAIR.initiator.public: PAIR.of_initiator}.get)

    assert failure.value.reason is HandshakeFailure.BAD_TAG


def test_an_initiator_who_does_not_have_the_static_key_it_claims_is_refused() -> None:
    """It can encrypt anybody's public key, but lacks static-static for the timestamp."""
    impostor = LocalStatic(b"impostor" * 4)
    impostor.public = PAIR.initiator.public
    message, _ = create_initiation(impostor, RemoteStatic(impostor, PAIR.responder.public), b"e" * 32, 1, TIMESTAMP)

    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_initiation(message)

    assert failure.value.reason is HandshakeFailure.BAD_TAG


def test_a_response_to_another_initiation_is_refused() -> None:
    _, later = create_initiation(PAIR.initiator, PAIR.of_responder, b"l" * 32, 0x99999999, TIMESTAMP)

    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_response(later, RESPONSE)

    assert failure.value.reason is HandshakeFailure.UNKNOWN_INDEX


# --- Keys of low order: an all-zero DH result ends it, whichever of es, ss, ee, se it is ---


def test_no_initiation_is_created_for_a_low_order_static_key() -> None:
    remote = RemoteStatic(PAIR.initiator, LOW_ORDER)

    assert remote.static_static == bytes(32)
    with pytest.raises(HandshakeError) as failure:
        create_initiation(PAIR.initiator, remote, b"e" * 32, 1, TIMESTAMP)
    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_no_initiation_is_consumed_from_a_low_order_static_key() -> None:
    """The initiator needs no private key for it: static-static would be zero, which everybody knows."""
    initiator = LocalStatic(b"impostor" * 4)
    initiator.public = LOW_ORDER
    message, _ = create_initiation(initiator, RemoteStatic(initiator, PAIR.responder.public), b"e" * 32, 1, TIMESTAMP)

    with pytest.raises(HandshakeError) as failure:
        consume_initiation(PAIR.responder, message, lambda public: RemoteStatic(PAIR.responder, public))

    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_an_initiation_with_a_low_order_ephemeral_is_refused() -> None:
    message = HandshakeInitiation(1, LOW_ORDER, bytes(48), bytes(28)).pack()

    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_initiation(message)

    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_no_response_is_created_to_a_low_order_ephemeral() -> None:
    consumed = ResponderHandshake(PAIR.initiator.public, 1, TIMESTAMP, LOW_ORDER, bytes(32), bytes(32))

    with pytest.raises(HandshakeError) as failure:
        PAIR.respond(consumed)

    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_a_response_with_a_low_order_ephemeral_is_refused() -> None:
    message = HandshakeResponse(1, INITIATED.local_index, LOW_ORDER, bytes(16)).pack()

    with pytest.raises(HandshakeError) as failure:
        PAIR.consume_response(INITIATED, message)

    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_no_response_is_consumed_from_a_low_order_static_key() -> None:
    remote = RemoteStatic(PAIR.initiator, LOW_ORDER)

    with pytest.raises(HandshakeError) as failure:
        consume_response(PAIR.initiator, remote, INITIATED, NO_PRESHARED_KEY, RESPONSE)

    assert failure.value.reason is HandshakeFailure.LOW_ORDER_KEY


def test_the_all_zero_private_key_is_no_identity() -> None:
    with pytest.raises(ValueError, match="no identity"):
        LocalStatic(bytes(32))


# --- Replayed and too many initiations ---


def test_a_timestamp_must_be_greater_than_the_last() -> None:
    latest = LatestInitiation()
    latest.accept(TIMESTAMP, 100.0)

    for stale in (TIMESTAMP, bytes(12), TIMESTAMP[:-1]):
        with pytest.raises(HandshakeError) as failure:
            latest.accept(stale, 200.0)
        assert failure.value.reason is HandshakeFailure.REPLAYED


def test_an_initiation_within_20_ms_of_the_last_is_a_flood() -> None:
    latest = LatestInitiation()
    latest.accept(b"\x01" + bytes(11), 100.0)

    with pytest.raises(HandshakeError) as failure:
        latest.accept(b"\x02" + bytes(11), 100.0199)
    assert failure.value.reason is HandshakeFailure.FLOODED

    latest.accept(b"\x02" + bytes(11), 100.02)
    assert latest == LatestInitiation(b"\x02" + bytes(11), 100.02)


def test_a_refused_initiation_is_not_remembered() -> None:
    latest = LatestInitiation()
    latest.accept(b"\x01" + bytes(11), 100.0)

    with pytest.raises(HandshakeError):
        latest.accept(b"\x02" + bytes(11), 100.01)
    with pytest.raises(HandshakeError):
        latest.accept(bytes(12), 100.5)

    assert latest == LatestInitiation(b"\x01" + bytes(11), 100.0)


# --- Secrets ---


def test_no_secret_is_in_a_repr() -> None:
    secrets = [
        PAIR.initiator.private,
        PAIR.of_responder.static_static,
        INITIATED.chaining_key,
        INITIATED.ephemeral_private,
        CONSUMED.chaining_key,
        RESPONDER_KEYS.send_key,
        RESPONDER_KEYS.receive_key,
    ]
    shown = repr([PAIR.initiator, PAIR.of_responder, INITIATED, CONSUMED, RESPONDER_KEYS])

    for secret in secrets:
        assert repr(secret) not in shown
        assert secret.hex() not in shown
