"""Known answers from RFC 7748, 7693 and 8439, the XChaCha draft and wireguard-go's test of the KDF."""

from hashlib import blake2s

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise import crypto

SUNSCREEN = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
AUTHENTICATED = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
KEY = bytes(range(0x80, 0xA0))

keys = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize(
    ("private", "public", "shared"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_dh_is_the_x25519_of_rfc_7748(private: str, public: str, shared: str) -> None:
    assert crypto.dh(bytes.fromhex(private), bytes.fromhex(public)).hex() == shared


def test_a_public_key_is_the_one_of_rfc_7748() -> None:
    private = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")

    assert crypto.public_key(private).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


@given(keys, keys)
def test_both_ends_of_a_dh_agree(ours: bytes, theirs: bytes) -> None:
    assert crypto.dh(ours, crypto.public_key(theirs)) == crypto.dh(theirs, crypto.public_key(ours))


@given(keys)
def test_clamping_changes_no_public_key_and_happens_once(private: bytes) -> None:
    clamped = crypto.clamp(private)

    assert crypto.clamp(clamped) == clamped
    assert crypto.public_key(clamped) == crypto.public_key(private)
    assert clamped[0] & 7 == 0
    assert clamped[31] & 0xC0 == 0x40


@pytest.mark.parametrize(
    "low_order_point",
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_dh_with_a_low_order_point_is_all_zero(low_order_point: str) -> None:
    assert crypto.dh(KEY, bytes.fromhex(low_order_point)) == bytes(32)


def test_hash_is_the_blake2s_of_rfc_7693() -> None:
    assert crypto.hash_(b"abc").hex() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"


def test_a_mac_is_not_a_longer_one_cut_short() -> None:
    assert crypto.mac(KEY, b"message").hex() == blake2s(b"message", key=KEY, digest_size=16).hexdigest()
    assert crypto.mac(KEY, b"message") != blake2s(b"message", key=KEY).digest()[:16]
    assert crypto.mac(KEY, b"message") != crypto.hmac_(KEY, b"message")[:16]


@pytest.mark.parametrize(
    ("key", "data", "t1", "t2", "t3"),
    [
        (
            b"test-key",
            b"test-input",
            "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
            "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
            "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
        ),
        (
            b"wireguard",
            b"wireguard",
            "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
            "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
            "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
        ),
        (
            b"",
            b"",
            "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
            "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
            "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
        ),
    ],
)
def test_the_kdfs_give_the_known_answers(key: bytes, data: bytes, t1: str, t2: str, t3: str) -> None:
    assert crypto.kdf1(key, data).hex() == t1
    assert [t.hex() for t in crypto.kdf2(key, data)] == [t1, t2]
    assert [t.hex() for t in crypto.kdf3(key, data)] == [t1, t2, t3]


def test_a_transport_cipher_is_the_aead_of_rfc_8439() -> None:
    cipher = crypto.transport_cipher(KEY)
    sealed = bytearray(len(SUNSCREEN) + 16)
    unsealed = bytearray(len(SUNSCREEN))
    nonce = bytes.fromhex("070000004041424344454647")

    cipher.encrypt_into(nonce, SUNSCREEN, AUTHENTICATED, sealed)
    cipher.decrypt_into(nonce, sealed, AUTHENTICATED, unsealed)

    assert sealed.hex() == (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b6"
        "7ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09"
        "e26a7e902ecbd0600691"
    )
    assert unsealed == SUNSCREEN


def test_the_aead_of_the_handshake_has_the_counter_in_the_last_eight_bytes_of_its_nonce() -> None:
    sealed = bytearray(len(SUNSCREEN) + 16)
    crypto.transport_cipher(KEY).encrypt_into(bytes.fromhex("000000000201000000000000"), SUNSCREEN, AUTHENTICATED, sealed)

    assert crypto.aead_seal(KEY, 0x0102, SUNSCREEN, AUTHENTICATED) == sealed


def test_the_xaead_is_the_one_of_the_xchacha_draft() -> None:
    assert crypto.xaead_seal(KEY, bytes(range(0x40, 0x58)), SUNSCREEN, AUTHENTICATED).hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e"
        "1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13b52ec0875924c1c7"
        "987947deafd8780acf49"
    )


@given(
    keys, st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.binary(max_size=100), st.binary(max_size=40)
)
def test_a_sealer_for_nonces_that_begin_alike_seals_as_for_each_by_itself(
    key: bytes, start: bytes, end: bytes, plaintext: bytes, authenticated: bytes
) -> None:
    seal = crypto.xaead_sealer(key, start)

    assert seal(bytes(4) + end, plaintext, authenticated) == crypto.xaead_seal(key, start + end, plaintext, authenticated)


@given(keys, st.binary(max_size=100), st.binary(max_size=40), st.data())
def test_what_was_sealed_is_unsealed_and_one_flipped_bit_undoes_it(
    key: bytes, plaintext: bytes, authenticated: bytes, data: st.DataObject
) -> None:
    nonce = bytes(24)
    sealed = crypto.aead_seal(key, 7, plaintext, authenticated)
    xsealed = crypto.xaead_seal(key, nonce, plaintext, authenticated)
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))

    assert crypto.aead_unseal(key, 7, sealed, authenticated) == plaintext
    assert crypto.xaead_unseal(key, nonce, xsealed, authenticated) == plaintext
    assert crypto.aead_unseal(key, 7, flipped(sealed, bit), authenticated) is None
    assert crypto.xaead_unseal(key, nonce, flipped(xsealed, bit), authenticated) is None
    assert crypto.aead_unseal(key, 8, sealed, authenticated) is None
    assert crypto.aead_unseal(key, 7, sealed, authenticated + b"!") is None
    assert crypto.xaead_unseal(key, nonce, xsealed, authenticated + b"!") is None


@pytest.mark.parametrize("length", [0, 15])
def test_what_is_shorter_than_a_tag_is_not_unsealed(length: int) -> None:
    assert crypto.aead_unseal(KEY, 0, bytes(length), b"") is None


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
