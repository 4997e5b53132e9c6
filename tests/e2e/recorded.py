"""wgpy, with its secrets written down on the side: ``python -m tests.e2e.recorded FILE FAULT WORDS``, WORDS being wgpy's own.

FILE gets, a line each in hex, every private key, every result of a key exchange, every chaining key and every key that follows
from one. A UAPI server complains once a second; this one always does. FAULT is what is done wrong, on purpose:

* ``none``
* ``crash:MODULE:NAME``: the function raises an exception when it has done its work, with what it knows on the stack;
* ``leak:FORM``: a session key is logged in that form, which is how we know that leaks are found.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import sys
from base64 import b64encode
from collections.abc import Callable

from noise import crypto
from wgpy.cli import main
from wgpy.daemon.uapi_server import UapiServer

RECORDED = ("public_key", "dh", "kdf1", "kdf2", "kdf3", "transport_cipher")
FORMS: dict[str, Callable[[bytes], str]] = {
    "hex": bytes.hex,
    "HEX": lambda key: key.hex().upper(),
    "base64": lambda key: b64encode(key).decode(),
    "repr": repr,
    "list": lambda key: repr(list(key)),
    "half": lambda key: key.hex()[:40],
}


def record(output: int, leak: Callable[[bytes], str] | None) -> None:
    """Have all that makes secrets tell them to ``output``."""
    originals = {name: getattr(crypto, name) for name in RECORDED}
    token_bytes = secrets.token_bytes

    def tell(*found: bytes) -> None:
        os.write(output, "".join(f"{one.hex()}\n" for one in found).encode())

    def recorded(name: str) -> Callable[..., object]:
        def call(*arguments: bytes) -> object:
            result = originals[name](*arguments)
            tell(*(result if isinstance(result, tuple) else [result]))
            return result

        return call

    def public_key(private: bytes) -> bytes:
        tell(private)
        public: bytes = originals["public_key"](private)
        return public

    def transport_cipher(key: bytes) -> object:
        tell(key)
        if leak is not None:
            logging.getLogger("wgpy").error("new keypair: %s", leak(key))
        return originals["transport_cipher"](key)

    def random_bytes(count: int) -> bytes:
        made = token_bytes(count)
        if count == 32:  # that of an ephemeral key, or the secret behind cookies; indices and nonces are public
            tell(made)
        return made

    for name in ("dh", "kdf1", "kdf2", "kdf3"):
        setattr(crypto, name, recorded(name))
    crypto.public_key = public_key
    crypto.transport_cipher = transport_cipher  # type: ignore[assignment]
    secrets.token_bytes = random_bytes  # type: ignore[assignment]


def crash(module: str, name: str) -> None:
    """Have a function or method fail whenever it is called."""
    where = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        where = getattr(where, part)
    original = getattr(where, last)

    def failing(*arguments: object, **named: object) -> object:
        result = original(*arguments, **named)
        raise RuntimeError(f"{name} was made to fail, with {type(result).__name__} on the stack")

    setattr(where, last, failing)


if __name__ == "__main__":
    file, fault, *words = sys.argv[1:]
    kind, _, rest = fault.partition(":")
    record(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), FORMS[rest] if kind == "leak" else None)
    if kind == "crash":
        crash(*rest.split(":"))
    UapiServer._quiet_until = property(lambda _: 0.0, lambda _, until: None)  # type: ignore[assignment]
    sys.exit(main(words))
