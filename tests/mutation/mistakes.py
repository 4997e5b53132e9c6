"""The mistakes that implementers of WireGuard usually make, made on purpose: is each of them noticed?

    python -m tests.mutation.mistakes         all of them (as root, for the few that only a real interface shows)
    python -m tests.mutation.mistakes 6 9     those with these numbers

They are the 22 of protocol.md section 6; some can be made in several places, or in several ways. Each is planted in a copy of
the tree, alone, and the tests that should notice are run there: without it they have to pass, with it one has to fail. The status
is 1 if a mistake goes unnoticed, and 2 if the code has changed so much that one can no longer be planted.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.limits import EXIT_TIMEOUT
from tests.mutation.tree import refresh

SHOWN = 3
"""Failing tests to look for; one is enough."""


@dataclass(frozen=True)
class Mistake:
    """``edits`` are (file, what stands there once, what stands there instead); ``tests`` are pytest's arguments."""

    number: int
    what: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def mistake(number: int, what: str, tests: str, *edits: tuple[str, str, str]) -> Mistake:
    return Mistake(number, what, edits, tuple(tests.split()))


HANDSHAKE, TIMERS, KEYPAIR = "noise/handshake.py", "noise/timers.py", "noise/keypair.py"
DEVICE, INBOUND, UDP = "wgpy/core/device.py", "wgpy/core/inbound.py", "wgpy/daemon/udp.py"
TEST_DEVICE, TEST_INBOUND = "tests/wgpy/core/test_device.py", "tests/wgpy/core/test_inbound.py"

KEYED_MAC = "return blake2s(data, key=key, digest_size=MAC_LENGTH).digest()"
PSK = "        self.chaining_key, hashed, key = crypto.kdf3(self.chaining_key, preshared_key)\n"
COOKIE_REFUSED = """\
consume_cookie_reply(message, now):
            self.count_drop(Drop.BAD_COOKIE_REPLY)
"""
LONE_OPENED = "self._device.data_opened(peer, keypair, endpoint, source, size, has_data, now)\n"
LONE_CHECKS = """\
        if not unseal_one(keypair, counter, self._view[start + HEADER : end], packet):
            self._device.count_drop(Drop.BAD_TAG)
            return
        if not keypair.replay_window.accept(counter):
            self._device.count_drop(Drop.REPLAYED)
            return
"""
LONE_CHECKS_SWAPPED = """\
        if not keypair.replay_window.accept(counter):
            self._device.count_drop(Drop.REPLAYED)
            return
        if not unseal_one(keypair, counter, self._view[start + HEADER : end], packet):
            self._device.count_drop(Drop.BAD_TAG)
            return
"""

MISTAKES = (
    mistake(
        1,
        "KDF1 over the ephemeral forgotten",
        "tests/noise/test_handshake.py",
        (HANDSHAKE, "        self.chaining_key = crypto.kdf1(self.chaining_key, public)\n", ""),
    ),
    mistake(
        2,
        "MAC made by HMAC",
        "tests/noise/test_crypto.py tests/noise/test_cookie.py",
        ("noise/crypto.py", KEYED_MAC, "return hmac.digest(key, data, blake2s)[:MAC_LENGTH]"),
    ),
    mistake(
        2,
        "MAC cut short instead of a digest of 16 bytes",
        "tests/noise/test_crypto.py tests/noise/test_cookie.py",
        ("noise/crypto.py", KEYED_MAC, "return blake2s(data, key=key).digest()[:MAC_LENGTH]"),
    ),
    mistake(
        2,
        "KDF made of keyed BLAKE2s",
        "tests/noise/test_crypto.py tests/noise/test_handshake.py",
        ("noise/crypto.py", "return hmac.digest(key, data, blake2s)", "return blake2s(data, key=key).digest()"),
    ),
    mistake(
        3,
        "PSK step skipped when there is none",
        "tests/noise/test_handshake.py",
        (HANDSHAKE, PSK, f"        if preshared_key == _ZERO:\n            return self.chaining_key\n{PSK}"),
    ),
    mistake(
        4,
        "20 initiations a second consumed instead of 50",
        "tests/noise/test_handshake.py tests/noise/test_constants.py",
        ("noise/constants.py", "INITIATION_INTERVAL: Final = 1 / 50", "INITIATION_INTERVAL: Final = 1 / 20"),
    ),
    mistake(
        4,
        "50 messages a second from one address worked on under load instead of 20",
        f"tests/noise/test_ratelimiter.py {TEST_DEVICE}",
        ("noise/ratelimiter.py", "PACKETS_PER_SECOND: Final = 20", "PACKETS_PER_SECOND: Final = 50"),
    ),
    mistake(
        5,
        "mac2 demanded when not under load",
        "tests/test_paper.py",
        (DEVICE, "        if not self.is_under_load(now):\n            return True\n", ""),
    ),
    mistake(
        5,
        "a cookie reply answered by sending again at once",
        f"tests/test_paper.py {TEST_DEVICE}",
        (
            DEVICE,
            COOKIE_REFUSED,
            COOKIE_REFUSED
            + """\
        else:
            peer.timers.forget_last_handshake()
            self.send_initiation(peer, now)
""",
        ),
    ),
    mistake(
        5,
        "the endpoint moved by a cookie reply",
        TEST_DEVICE,
        (
            DEVICE,
            "                self._cookie_reply(message, now)\n",
            """\
                self._cookie_reply(message, now)
                if (known := self.indices.get(int.from_bytes(message[4:8], "little"))) is not None:
                    known[0].endpoint = endpoint
""",
        ),
    ),
    mistake(
        6,
        "the responder sends on `next` before confirmation",
        "tests/noise/test_keypair.py tests/test_paper.py",
        (
            KEYPAIR,
            "        self.next = new\n        self.previous = None\n",
            "        self.previous, self.current = self.current, new\n",
        ),
    ),
    mistake(
        7,
        "a keepalive answered with a keepalive",
        "tests/test_paper.py",
        (DEVICE, "        if has_data:\n            timers.data_received(now)\n", "        timers.data_received(now)\n"),
    ),
    mistake(8, "replay window before authentication", TEST_INBOUND, (INBOUND, LONE_CHECKS, LONE_CHECKS_SWAPPED)),
    mistake(
        8,
        "replay window before authentication, in a burst",
        TEST_INBOUND,
        (INBOUND, "genuine = sorted(set(range(len(counters))).difference(forged))", "genuine = list(range(len(counters)))"),
    ),
    mistake(
        9,
        "the endpoint moved by a replayed packet",
        f"tests/test_paper.py {TEST_INBOUND}",
        (
            INBOUND,
            "        if not keypair.replay_window.accept(counter):\n",
            "        if not keypair.replay_window.accept(counter):\n            peer.endpoint = endpoint\n",
        ),
    ),
    mistake(
        9,
        "the endpoint moved by a replayed burst",
        TEST_INBOUND,
        (INBOUND, "        if not accepted:\n", "        if not accepted:\n            peer.endpoint = arrival.endpoint\n"),
    ),
    mistake(
        9,
        "the endpoint not moved by a packet from an address that is not allowed",
        TEST_INBOUND,
        (
            INBOUND,
            LONE_OPENED,
            "moved = size == OVERHEAD or self._accept(peer, packet) > 0\n        "
            + LONE_OPENED.replace("endpoint", "endpoint if moved else peer.endpoint or endpoint"),
        ),
    ),
    mistake(
        10,
        "the source looked for among the prefixes of the peer, not in the whole table",
        TEST_INBOUND,
        (
            INBOUND,
            "        if self._device.allowed_ips.lookup(address) is not peer:\n",
            "        if not any(\n"
            "            p.max_prefixlen == 8 * len(address)\n"
            "            and int.from_bytes(address) ^ int(p.network_address) < 1 << p.max_prefixlen - p.prefixlen\n"
            "            for p in self._device.allowed_ips.prefixes(peer)\n"
            "        ):\n",
        ),
    ),
    mistake(
        11,
        "the private key of zeros taken for a key",
        f"tests/noise/test_handshake.py {TEST_DEVICE}",
        (HANDSHAKE, "if crypto.equal(self.private, _ZERO):", "if False:"),
        (
            DEVICE,
            "self.local = None if private_key == NO_KEY else LocalStatic(private_key)",
            "self.local = LocalStatic(private_key)",
        ),
    ),
    mistake(
        12,
        "padding beyond the MTU",
        "tests/wgpy/core/test_outbound.py tests/wgpy/core/test_arena.py",
        ("wgpy/core/arena.py", "return padded if padded <= mtu else length", "return padded"),
    ),
    mistake(
        13,
        "reserved bytes of handshake messages ignored",
        f"tests/noise/test_messages.py {TEST_DEVICE} tests/test_hostile.py",
        ("noise/messages.py", 'return int.from_bytes(message[:4], "little")', "return message[0] if message else 0"),
        (DEVICE, 'kind = int.from_bytes(message[:4], "little")', "kind = message[0]"),
    ),
    mistake(
        13,
        "reserved bytes of transport data ignored",
        f"{TEST_INBOUND} tests/test_hostile.py",
        (INBOUND, '_HEADER = Struct("<IIQ")', '_HEADER = Struct("<B3xIQ")'),
    ),
    mistake(
        13,
        "reserved bytes of transport data ignored in a burst",
        f"{TEST_INBOUND} tests/test_hostile.py",
        (INBOUND, "head & 0xFFFFFFFF != TRANSPORT", "head & 0xFF != TRANSPORT"),
    ),
    mistake(
        14,
        "errno of a set positive",
        "tests/wgpy/test_uapi.py",
        ("wgpy/uapi.py", 'return f"errno={-errno}\\n\\n"', 'return f"errno={errno}\\n\\n"'),
    ),
    mistake(
        14,
        "errno of a get negative",
        "tests/wgpy/test_uapi.py tests/wgpy/daemon/test_uapi_server.py",
        ("wgpy/uapi.py", 'return f"errno={errno}\\n\\n"', 'return f"errno={-errno}\\n\\n"'),
    ),
    mistake(
        15,
        "peers listed in the order of a map",
        TEST_DEVICE,
        (
            DEVICE,
            "for peer in (self.peers.values() if peers is None else peers)",
            "for peer in sorted(self.peers.values(), key=id)[::-1]",
        ),
    ),
    mistake(
        16,
        "a link taken to be up because a write of nothing fails alike, up and down",
        "tests/tun/test_link.py tests/wgpy/daemon/test_run.py",
        ("tun/link.py", "bool(flags & IFF_UP)", "True"),
    ),
    mistake(
        17,
        "trains given up after EIO only",
        "tests/wgpy/daemon/test_udp.py tests/wgpy/daemon/test_fallbacks.py",
        (UDP, "_TRAIN_REFUSED = {errno.EIO, errno.EINVAL, errno.EMSGSIZE}", "_TRAIN_REFUSED = {errno.EIO}"),
    ),
    mistake(
        18,
        "the address that datagrams came to lost under GRO",
        "tests/wgpy/daemon/test_udp.py",
        (
            UDP,
            "        received.endpoint = self._endpoints.get(address)",
            '        received.source = b"" if received.segment else received.source\n'
            "        received.endpoint = self._endpoints.get(address)",
        ),
    ),
    mistake(
        18,
        "the address that datagrams came to lost under GRO, where many are taken at once",
        "tests/wgpy/daemon/test_udp.py tests/wgpy/daemon/test_mmsg.py",
        (UDP, "segment, endpoint, source, ecn))", 'segment, endpoint, b"" if segment else source, ecn))'),
    ),
    mistake(
        19,
        "18 initiations in all, not 20",
        "tests/noise/test_timers.py tests/test_paper.py",
        (TIMERS, "if self.handshake_attempts > MAX_TIMER_HANDSHAKES:", "if self.handshake_attempts >= MAX_TIMER_HANDSHAKES - 1:"),
    ),
    mistake(
        20,
        "retransmissions without jitter",
        "tests/noise/test_timers.py tests/test_paper.py",
        (TIMERS, "now + (REKEY_TIMEOUT + self.jitter())", "now + REKEY_TIMEOUT"),
    ),
    mistake(
        20,
        "handshakes for want of an answer without jitter",
        "tests/noise/test_timers.py tests/test_paper.py",
        (TIMERS, "now + (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self.jitter())", "now + (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT)"),
    ),
    mistake(
        20,
        "a process whose jitter is none",
        "tests/wgpy/daemon/test_run.py",
        ("wgpy/daemon/run.py", "random.uniform(0, REKEY_TIMEOUT_JITTER)", "random.uniform(0, 0)"),
    ),
    mistake(
        21,
        "an initiation within 5 s of a response just sent",
        TEST_DEVICE,
        (
            DEVICE,
            "        peer.timers.handshake_sent(now)\n        self._send_message(peer, response, now)\n",
            "        self._send_message(peer, response, now)\n",
        ),
    ),
    mistake(
        22,
        "a responder that rekeys by age when it sends",
        "tests/noise/test_keypair.py tests/test_paper.py",
        (
            KEYPAIR,
            "(self.is_initiator and now >= self.created_at + REKEY_AFTER_TIME)",
            "now >= self.created_at + REKEY_AFTER_TIME",
        ),
    ),
    mistake(
        22,
        "a responder that rekeys by age when it receives",
        "tests/noise/test_keypair.py",
        (
            KEYPAIR,
            "return self.is_initiator and now >= self.created_at + lastminute",
            "return now >= self.created_at + lastminute",
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation.mistakes", description="make mistakes; see whether a test fails"
    )
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="of protocol.md section 6")
    numbers = parser.parse_args().numbers
    chosen = [one for one in MISTAKES if not numbers or one.number in numbers]
    if not chosen:
        parser.error(f"no mistake has the number {numbers[0]}: they are 1 to {MISTAKES[-1].number}")
    with tempfile.TemporaryDirectory(prefix="wgpy-mistakes-") as folder:
        copy = Path(folder)
        refresh(copy)
        for one in chosen:
            if complaint := misfit(copy, one):
                print(complaint, file=sys.stderr)
                return 2
        if red := red_tests(copy, sorted({test for one in chosen for test in one.tests})):
            print(f"tests fail before any mistake is made: {', '.join(red)}", file=sys.stderr)
            return 2
        unnoticed = sum(not noticed(copy, one) for one in chosen)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} mistakes are noticed")
    return 1 if unnoticed else 0


def misfit(copy: Path, one: Mistake) -> str:
    """Why ``one`` cannot be planted; "" if it can."""
    for path, old, _ in one.edits:
        found = (copy / path).read_text().count(old)
        if found != 1:
            return (
                f"mistake {one.number} ({one.what}) cannot be planted: {path} has {found} times, instead of once: {old.strip()}"
            )
    return ""


def noticed(copy: Path, one: Mistake) -> bool:
    """Plant ``one``, run its tests, take it out again, and print its row."""
    sources = {path: (copy / path).read_text() for path, _, _ in one.edits}
    for path, old, new in one.edits:
        (copy / path).write_text((copy / path).read_text().replace(old, new))
    try:
        red = red_tests(copy, one.tests)
    finally:
        for path, source in sources.items():
            (copy / path).write_text(source)
    where = ", ".join(f"{path}:{sources[path][: sources[path].index(old)].count(chr(10)) + 1}" for path, old, _ in one.edits)
    print(f"{one.number:>3} {one.what}\n      planted in {where}")
    print("".join(f"      red: {test}\n" for test in red) or "      UNNOTICED\n", end="", flush=True)
    return bool(red)


def red_tests(copy: Path, tests: Iterable[str]) -> list[str]:
    """The first of ``tests`` that fail in ``copy``."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", f"--maxfail={SHOWN}"]
    plugins = ["-p", "no:cacheprovider", "-p", "tests.mutation.limits"]
    ran = subprocess.run(
        [*command, *plugins, *tests], cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    if ran.returncode == EXIT_TIMEOUT:
        return ["one that does not end"]
    if ran.returncode not in (0, 1, 2):
        raise SystemExit(f"pytest ended with status {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
