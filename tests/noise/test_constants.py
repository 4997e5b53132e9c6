"""The paper's table, typed in again: we conform to the paper, not to ourselves."""

from noise import constants


def test_the_strings_are_the_papers() -> None:
    assert constants.CONSTRUCTION == b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
    assert constants.IDENTIFIER == b"WireGuard v1 zx2c4 Jason@zx2c4.com"
    assert len(constants.CONSTRUCTION) == 37
    assert len(constants.IDENTIFIER) == 34
    assert constants.LABEL_MAC1 == b"mac1----"
    assert constants.LABEL_COOKIE == b"cookie--"


def test_the_numbers_are_those_of_section_6_1() -> None:
    assert constants.REKEY_AFTER_MESSAGES == 1152921504606846976
    assert constants.REJECT_AFTER_MESSAGES == 2**64 - 8130
    assert constants.REKEY_AFTER_TIME == 120
    assert constants.REJECT_AFTER_TIME == 180
    assert constants.REKEY_ATTEMPT_TIME == 90
    assert constants.REKEY_TIMEOUT == 5
    assert constants.KEEPALIVE_TIMEOUT == 10


def test_the_numbers_the_kernel_added_are_the_kernels() -> None:
    assert constants.REPLAY_WINDOW == 8128
    assert constants.MAX_TIMER_HANDSHAKES == 18
    assert constants.ZERO_KEY_MATERIAL_AFTER_TIME == 540
    assert constants.INITIATION_INTERVAL == 0.02
    assert constants.COOKIE_SECRET_MAX_AGE == 120
    assert constants.COOKIE_SECRET_LATENCY == 5
    assert constants.MAX_STAGED_PACKETS == 128
    assert 0.33 < constants.REKEY_TIMEOUT_JITTER < 0.334


def test_a_transport_message_is_32_bytes_longer_than_its_packet() -> None:
    assert constants.TRANSPORT_OVERHEAD == 32
