"""Nothing that was signed can be changed, and who signed can be known."""

import base64
import json
import logging
import os
import random
import string
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.compliance.signing import (
    FILE,
    NotGenuine,
    PublicKey,
    SigningError,
    SigningKeys,
    canonical,
    parse_trusted,
    print_keys,
    verify,
)
from controller.entries import rfc3339

NOW = 1_800_000_000.0
STATEMENT = {"made_at": rfc3339(NOW), "text": "encrypted: n2 – n3", "ms": 1200, "rows": [{"a": None, "b": True}]}


def signed(directory: Path, at: float = NOW) -> bytes:
    return canonical(SigningKeys(directory).sign({**STATEMENT, "made_at": rfc3339(at)}, at))


def test_what_is_signed_verifies_with_its_key(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    document = signed(tmp_path)

    found = verify(document, keys.public(NOW))
    assert (found.document["statement"], found.is_known) == (STATEMENT, True)
    assert not verify(document, []).is_known
    assert not verify(document, SigningKeys(other(tmp_path)).public(NOW)).is_known


def other(directory: Path) -> Path:
    (directory / "other").mkdir()
    return directory / "other"


def test_no_byte_of_the_document_can_be_another(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path).public(NOW)
    document, dice = signed(tmp_path), random.Random(7)
    for place in range(len(document)):
        for byte in {document[place] ^ 1, document[place] ^ 0x20, dice.randrange(256)} - {document[place]}:
            altered = document[:place] + bytes([byte]) + document[place + 1 :]
            with pytest.raises(NotGenuine):
                verify(altered, keys)


def test_none_can_be_left_out_and_nothing_added(tmp_path: Path) -> None:
    keys, document = SigningKeys(tmp_path).public(NOW), signed(tmp_path)
    for place in range(len(document)):
        with pytest.raises(NotGenuine):
            verify(document[:place] + document[place + 1 :], keys)
    envelope = json.loads(document)
    for added in ({**envelope, "note": 1}, {**envelope, "signature": {**envelope["signature"], "note": 1}}):
        with pytest.raises(NotGenuine, match="nothing else"):
            verify(canonical(added), keys)
    with pytest.raises(NotGenuine, match="twice"):
        verify(document.replace(b'"ms":1200', b'"ms":1200,"ms":1200'), keys)


def test_a_signature_is_written_in_one_way_only(tmp_path: Path) -> None:
    """The last letter before the padding has bits that base64 ignores."""
    keys, envelope = SigningKeys(tmp_path).public(NOW), json.loads(signed(tmp_path))
    value = envelope["signature"]["value"]
    same = [
        one for one in string.ascii_letters + string.digits if base64.b64decode(f"{value[:-3]}{one}==") == base64.b64decode(value)
    ]

    for letter in set(same) - {value[-3]}:
        envelope["signature"]["value"] = f"{value[:-3]}{letter}=="
        with pytest.raises(NotGenuine):
            verify(canonical(envelope), keys)
    assert len(same) > 8


def test_how_it_is_written_down_does_not_matter(tmp_path: Path) -> None:
    indented = json.dumps(json.loads(signed(tmp_path)), indent=2).encode()

    assert verify(indented, SigningKeys(tmp_path).public(NOW)).is_known


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b"7", b'{"statement": 1, "signature": 2}', b"\xff", b"[" * 100_000])
def test_what_is_no_report_is_said_in_one_line(document: bytes) -> None:
    with pytest.raises(NotGenuine, match="not a report"):
        verify(document, [])


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = SigningKeys(tmp_path).public(NOW)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600

    assert SigningKeys(tmp_path).public(NOW + 9) == first == [PublicKey(first[0].key, rfc3339(NOW))]
    assert SigningKeys(other(tmp_path)).known() == [] and not (tmp_path / "other" / FILE).exists(), "who only checks makes none"
    (tmp_path / FILE).chmod(0o644)
    with caplog.at_level(logging.WARNING):
        SigningKeys(tmp_path).public(NOW)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600 and "rotate the key" in caplog.text


def test_a_rotation_keeps_the_old_public_key_with_its_dates_and_forgets_the_private_one(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    old = keys.public(NOW)[0]
    private = json.loads((tmp_path / FILE).read_text())["private_key"]
    new = keys.rotate(NOW + 100)
    newest = keys.rotate(NOW + 200)

    assert keys.public(NOW + 300) == [
        PublicKey(old.key, rfc3339(NOW), rfc3339(NOW + 100)),
        PublicKey(new.key, rfc3339(NOW + 100), rfc3339(NOW + 200)),
        PublicKey(newest.key, rfc3339(NOW + 200)),
    ]
    assert private not in (tmp_path / FILE).read_text()


def test_who_trusts_an_old_key_can_check_what_a_later_one_has_signed_and_the_other_way_round(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    early = signed(tmp_path)
    old = keys.public(NOW)
    keys.rotate(NOW + 100)
    keys.rotate(NOW + 200)
    late = signed(tmp_path, NOW + 300)

    assert verify(late, old).is_known
    assert verify(early, keys.known()).is_known, "the ring has the dates of old keys"
    backdated = [PublicKey(one.key, one.since, rfc3339(NOW - 1)) for one in old]
    assert not verify(early, backdated).is_known, "a key that had been retired by then"


def test_a_handover_needs_both_signatures(tmp_path: Path) -> None:
    """Somebody with a key of their own cannot put it behind one that is trusted."""
    old = SigningKeys(tmp_path).public(NOW)
    mallory = SigningKeys(other(tmp_path))
    mallory.rotate(NOW)
    document = mallory.sign(STATEMENT, NOW)
    handover = document["signature"]["handovers"][0]
    handover["old"] = old[0].key

    with pytest.raises(NotGenuine, match="both keys"):
        verify(canonical(document), old)
    secret = json.loads((tmp_path / "other" / FILE).read_text())["private_key"]
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(secret))
    terms = {"old": old[0].key, "new": handover["new"], "at": handover["at"]}
    by_new = base64.b64encode(private.sign(b"wgpy report key handover\n" + canonical(terms))).decode()
    document["signature"]["handovers"] = [{**terms, "by_old": by_new, "by_new": by_new}]
    with pytest.raises(NotGenuine, match="both keys"):
        verify(canonical(document), old)
    document["signature"]["handovers"] = []
    assert not verify(canonical(document), old).is_known


def test_a_retired_key_vouches_for_nobody(tmp_path: Path) -> None:
    """Who has stolen a key before it was rotated cannot hand over to one of their own, where the rotation is known."""
    keys = SigningKeys(tmp_path)
    keys.public(NOW)
    stolen = SigningKeys(other(tmp_path))
    (tmp_path / "other" / FILE).write_bytes((tmp_path / FILE).read_bytes())
    (tmp_path / "other" / FILE).chmod(0o600)
    before = keys.public(NOW)
    keys.rotate(NOW + 100)
    stolen.rotate(NOW + 100)
    forged = canonical(stolen.sign({**STATEMENT, "made_at": rfc3339(NOW + 200)}, NOW + 200))

    assert not verify(forged, keys.known()).is_known
    assert verify(forged, before).is_known, "who has not heard of the rotation cannot tell"
    assert verify(signed(tmp_path, NOW + 200), before).is_known


def test_keys_are_printed_and_read_back(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    keys.rotate(NOW)

    assert parse_trusted(print_keys(keys.known())) == keys.known()
    assert parse_trusted(keys.known()[1].key) == [PublicKey(keys.known()[1].key)]
    for wrong in ("", "abc", base64.b64encode(bytes(31)).decode(), f"{keys.known()[0].key} x"):
        with pytest.raises(ValueError, match="key"):
            parse_trusted(wrong)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"private_key": "AAAA", "since": "x", "handovers": []}'])
def test_a_file_that_holds_no_key_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    (tmp_path / FILE).chmod(0o600)

    with pytest.raises(SigningError, match="holds no signing key") as caught:
        SigningKeys(tmp_path).sign(STATEMENT, NOW)
    assert (tmp_path / FILE).read_text() == content and "AAAA" not in str(caught.value)


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SigningError, match="No such file"):
        SigningKeys(tmp_path / "gone").public(NOW)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SigningError, match="No space left"):
        SigningKeys(tmp_path).public(NOW)
