"""Signs statements, checks signatures, and keeps the key: Ed25519 (RFC 8032) over canonical JSON (RFC 8785).

The key lives in ``report-keys.json`` of a state directory, readable by its owner only, and is made at first use. It signs reports
and nothing else. When it is rotated, the old private key is forgotten; its public key stays in the file with its dates, and
the two keys sign the *handover* between them. Reports carry the handovers that led to their key: who trusts an old key can check
a report that a later one has signed, without being told anew.

A document that verifies was made by the holder of a key and has not changed since. Whose key that is no document can say: without
a key that the reader trusts, :attr:`Verified.is_known` is False.
"""

import base64
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from controller.entries import rfc3339
from wgpy import private_file

log = logging.getLogger(__name__)

FILE = "report-keys.json"
ALGORITHM = "Ed25519 over RFC 8785"
_HANDOVER = b"wgpy report key handover\n"
"""Before what the two keys of a handover sign, so that it can never be taken for a statement."""


class SigningError(Exception):
    """The key cannot be used. The message is one line and holds no key."""


class NotGenuine(Exception):
    """This is no report that its key has signed. The message is one line."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and when it signs: from ``since`` (RFC 3339) to ``until``, None for still. Text as printed: base64."""

    key: str
    since: str = ""
    until: str | None = None

    def covers(self, time: str) -> bool:
        return self.since <= time and (self.until is None or time <= self.until)


@dataclass(frozen=True, slots=True)
class Verified:
    """A signed ``document``, and whether the reader trusts its key: itself, or by way of handovers."""

    document: Mapping[str, Any]
    is_known: bool


def canonical(value: Any) -> bytes:
    """RFC 8785. Raises NotGenuine for what has no canonical form."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise NotGenuine(f"not a report: {error}") from None


# Signing ------------------------------------------------------------------------------------------------------------


class SigningKeys:
    """The keys of one state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def sign(self, statement: Mapping[str, Any], now: float) -> dict[str, Any]:
        """The signed document: the statement and its signature. Raises SigningError."""
        with self._locked():
            kept = self._read() or self._made(now)
        private = _private(kept)
        signature = {
            "algorithm": ALGORITHM,
            "public_key": _public(private),
            "value": _base64(private.sign(canonical(statement))),
            "handovers": kept["handovers"],
        }
        signed: dict[str, Any] = json.loads(canonical({"statement": statement, "signature": signature}))
        return signed  # in the order of its canonical form, which is what whoever verifies it renders again

    def rotate(self, now: float) -> PublicKey:
        """Sign with a new key from now on. Raises SigningError."""
        with self._locked():
            kept = self._read() or self._made(now)
            old, new = _private(kept), Ed25519PrivateKey.generate()
            handover = {"old": _public(old), "new": _public(new), "at": rfc3339(now)}
            message = _HANDOVER + canonical(handover)
            kept["handovers"].append({**handover, "by_old": _base64(old.sign(message)), "by_new": _base64(new.sign(message))})
            self._write({**kept, "private_key": _base64(new.private_bytes_raw())})
            return PublicKey(_public(new), rfc3339(now))

    def public(self, now: float) -> list[PublicKey]:
        """All keys there have been, the present one last. It is made if there is none. Raises SigningError."""
        with self._locked():
            kept = self._read() or self._made(now)
        return _public_keys(kept)

    def known(self) -> list[PublicKey]:
        """The same, but none is made. Raises SigningError."""
        kept = self._read()
        return _public_keys(kept) if kept else []

    def _made(self, now: float) -> dict[str, Any]:
        private = Ed25519PrivateKey.generate()
        kept = {"since": rfc3339(now), "handovers": [], "private_key": _base64(private.private_bytes_raw())}
        self._write(kept)
        return kept

    def _read(self) -> dict[str, Any] | None:
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    log.warning("%s was readable by others: its mode is now 0600, but rotate the key", self._path)
                    os.fchmod(file.fileno(), 0o600)
                kept: dict[str, Any] = json.loads(file.read())
            _private(kept)
            _public_keys(kept)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SigningError(f"cannot read the signing key {self._path}: {error.strerror}") from None
        except (ValueError, LookupError, TypeError):
            raise SigningError(f"{self._path} holds no signing key: move it away to have a new one made") from None
        return kept

    def _write(self, kept: Mapping[str, Any]) -> None:
        try:
            private_file.replace(self._path, json.dumps(kept))
        except OSError as error:
            raise SigningError(f"cannot write the signing key {self._path}: {error.strerror}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else makes or changes the key meanwhile."""
        try:
            descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SigningError(f"cannot use the state directory {self._path.parent}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _public_keys(kept: Mapping[str, Any]) -> list[PublicKey]:
    keys = [PublicKey(_public(_private(kept)), kept["since"])]
    for handover in reversed(kept["handovers"]):
        keys[0] = replace(keys[0], since=handover["at"])
        keys.insert(0, PublicKey(handover["old"], kept["since"], handover["at"]))
    return keys


def _private(kept: Mapping[str, Any]) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_bytes(kept["private_key"]))


def _public(private: Ed25519PrivateKey) -> str:
    return _base64(private.public_key().public_bytes_raw())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """The opposite. Raises ValueError, also for text that says the same in another way: its last letter has bits that count for
    nothing."""
    data = base64.b64decode(text, validate=True)
    if _base64(data) != text:
        raise ValueError("not as base64 is written")
    return data


# Checking -----------------------------------------------------------------------------------------------------------


def verify(document: bytes, trusted: Sequence[PublicKey]) -> Verified:
    """Check a signed document. Raises NotGenuine if anything about it is not as it was signed."""
    envelope = _parse(document)
    statement, signature = envelope["statement"], envelope["signature"]
    key, made_at = signature["public_key"], statement["made_at"]
    if not _is_signed(key, signature["value"], canonical(statement)):
        raise NotGenuine("the signature does not fit the statement: it was altered, or signed with another key")
    for handover in signature["handovers"]:
        terms = {name: handover[name] for name in ("old", "new", "at")}
        message = _HANDOVER + canonical(terms)
        for by, signer in (("by_old", "old"), ("by_new", "new")):
            if not _is_signed(handover[signer], handover[by], message):
                raise NotGenuine(f"the handover to the key {handover['new']} is not signed by both keys")
    return Verified(json.loads(canonical(envelope)), _is_known(key, made_at, signature["handovers"], trusted))


def _is_known(key: str, made_at: str, handovers: Sequence[Mapping[str, str]], trusted: Sequence[PublicKey]) -> bool:
    """Whether the reader trusts the key for this time, or one that has handed over to it before.

    A key that the reader knows to have ended vouches for nobody: its heir stands in the same list, and whoever has got hold of a
    retired key could name another one."""
    if any(one.key == key and one.covers(made_at) for one in trusted):
        return True
    followed, heirs = key, {handover["new"]: handover for handover in handovers}
    for _ in handovers:
        handover = heirs.get(followed)
        if handover is None or handover["at"] > made_at:
            return False
        followed = handover["old"]
        if any(one.key == followed and one.until is None for one in trusted):
            return True
    return False


def _is_signed(key: str, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(_bytes(key)).verify(_bytes(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse(document: bytes) -> Any:
    """The document, if it is nothing but a statement and its signature, and says nothing twice."""
    try:
        envelope = json.loads(document.decode(), object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise NotGenuine(f"not a report: {error}") from None
    try:
        signature = envelope["signature"]
        is_one = (
            envelope.keys() == {"statement", "signature"}
            and signature.keys() == {"algorithm", "public_key", "value", "handovers"}
            and signature["algorithm"] == ALGORITHM
            and isinstance(envelope["statement"]["made_at"], str)
            and all(
                handover.keys() == {"old", "new", "at", "by_old", "by_new"}
                and all(isinstance(text, str) for text in handover.values())
                for handover in signature["handovers"]
            )
            and isinstance(signature["public_key"], str)
            and isinstance(signature["value"], str)
        )
    except (LookupError, TypeError, AttributeError):
        is_one = False
    if not is_one:
        raise NotGenuine("not a report: it is to have a statement and a signature, and nothing else")
    return envelope


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object says something twice")
    return dict(pairs)


def _number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no whole number")


def parse_trusted(text: str) -> list[PublicKey]:
    """The keys that ``wgpy report key`` has printed, or one key alone. Raises ValueError."""
    keys = [PublicKey(*_row(line.split())) for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError("there is no key in it")
    return keys


def _row(words: Sequence[str]) -> tuple[str, str, str | None]:
    try:
        is_key = len(_bytes(words[0])) == 32 and len(words) in (1, 3)
    except ValueError:
        is_key = False
    if not is_key:
        raise ValueError(f"not a public key, 44 characters of base64, as wgpy report key prints it: {' '.join(words)[:80]!r}")
    since, until = (words[1], None if words[2] == "-" else words[2]) if len(words) == 3 else ("", None)
    return words[0], since, until


def print_keys(keys: Sequence[PublicKey]) -> str:
    """A line for each: the key, from when, until when (``-`` for still)."""
    return "".join(f"{one.key} {one.since} {one.until or '-'}\n" for one in keys)
