"""No key is ever seen where it has no business: not in what a process prints, nor in its metrics, its command line, its
environment, or files that others may read; neither in good days nor in bad ones.

``tests.e2e.recorded`` is wgpy with all secrets written down: private ephemerals, results of key exchanges, chaining keys and
session keys. To these come the keys that are configured. A window of twelve bytes of any of them counts, in hex, base64 or raw:
half a key is a leak, too.
"""

import contextlib
import dataclasses
import gc
import importlib
import os
import pkgutil
import socket
import stat
import sys
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

import noise
import wgpy
from controller.demo.topology import Topology
from noise import crypto
from noise.constants import REKEY_TIMEOUT
from noise.crypto import clamp, public_key
from tests.e2e.lab import PATIENCE, PORT, WGPY, DataPlane, block, inside, node_addresses, ping, wait_for
from tests.e2e.recorded import FORMS, RECORDED, record
from tests.sim import Sim
from wgpy import uapi, wgconf
from wgpy.client import ClientError
from wgpy.config import Endpoint, SetDevice, SetPeer, changes_to

METRICS = "127.0.0.1:9586"
WINDOW = 12
"""Bytes."""


# To look for secrets -----------------------------------------------------------------------------------------------


def leaks(text: bytes, secrets: Iterable[bytes]) -> list[str]:
    """How ``secrets`` show in ``text``: which form, and where."""
    lower = text.lower()
    found = []
    for secret in secrets:
        for form, haystack, needles in (
            ("hex", lower, _windows(secret.hex().encode(), 2 * WINDOW)),
            ("base64", text, _windows(b64encode(secret), 4 * WINDOW // 3)),
            ("raw", text, _windows(secret, WINDOW)),
            ("repr", text, [repr(secret[:WINDOW])[2:-1].encode(), repr(secret[WINDOW:])[2:-1].encode()]),
            ("list", text, [str(list(secret[:WINDOW]))[1:-1].encode()]),
        ):
            found += [f"{form} at {haystack.index(needle)}" for needle in needles if needle in haystack]
    return found


def _windows(text: bytes, length: int) -> set[bytes]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


@pytest.mark.parametrize("form", FORMS)
def test_the_search_finds_a_key_in_this_form(form: str) -> None:
    secret = os.urandom(32)

    assert leaks(f"INFO: the key is {FORMS[form](secret)}!".encode(), [secret])
    assert not leaks(f"INFO: the key is {FORMS[form](os.urandom(32))}!".encode(), [secret])


def test_the_search_finds_a_key_as_it_is() -> None:
    secret = os.urandom(32)

    assert leaks(b"<" + secret[3:] + b">", [secret])


# Two nodes that speak to each other -----------------------------------------------------------------------------------


@dataclass
class Pair:
    """Two data planes, the first of which is looked at. ``given`` are the keys that somebody has told it."""

    topology: Topology
    planes: tuple[DataPlane, DataPlane]
    given: list[bytes] = field(repr=False)

    @classmethod
    @contextmanager
    def lay(cls, fault: str = "none", *environment: str) -> Iterator["Pair"]:
        with Topology.create() as topology:
            planes = []
            for number, its_fault in ((1, fault), (2, "none")):
                node = topology.add_node(f"n{number}", node_addresses(number))
                recorded = [sys.executable, "-m", "tests.e2e.recorded", str(node.directory / "recorded"), its_fault]
                options = ["run", "wg0", "--state", str(node.directory / "state"), "--metrics", METRICS]
                planes.append(DataPlane(node, "wg0", ["env", "LOG_LEVEL=verbose", *environment, *recorded, *options]))
            yield cls(topology, (planes[0], planes[1]), [])

    def configure(self) -> None:
        """Keys, a preshared one too, and each other as peers; then up."""
        private_keys, preshared_key = [clamp(os.urandom(32)) for _ in self.planes], os.urandom(32)
        self.given += [*private_keys, preshared_key]
        for number, plane in enumerate(self.planes, start=1):
            other = 3 - number
            endpoint = Endpoint(str(self.planes[other - 1].node.address(4)), PORT)
            peer = SetPeer(
                public_key(private_keys[other - 1]), False, False, preshared_key, endpoint, 1, False, (block(other, 4),)
            )
            plane.client.set([SetDevice(private_keys[number - 1], PORT, replace_peers=True), peer])
            plane.node.configure(
                links=[
                    "link set wg0 up",
                    f"addr replace {block(number, 4)[254]} dev wg0",
                    f"route replace {block(other, 4)} dev wg0 src {block(number, 4)[254]}",
                ]
            )

    def reached(self, count: int = 1) -> int:
        return ping(self.planes[0].node, block(2, 4)[254], count=count, patience=5)

    def request(self, text: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.planes[0].client.path))
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass

    @property
    def secrets(self) -> set[bytes]:
        """All there have been so far, of the first node."""
        told = (self.planes[0].node.directory / "recorded").read_text().split()
        return {*self.given, *map(bytes.fromhex, told)} - {bytes(32)}

    @property
    def log(self) -> bytes:
        return self.planes[0].log.read_bytes()

    def metrics(self) -> bytes:
        """What the first one serves, page by page."""
        host, _, port = METRICS.rpartition(":")
        found = b""
        for page in ("/metrics", "/metrics/mindflavor", "/healthz", "/readyz", "/nothing"):
            with inside(self.planes[0].node, lambda: socket.create_connection((host, int(port)), PATIENCE)) as connection:
                connection.sendall(f"GET {page} HTTP/1.0\r\n\r\n".encode())
                while data := connection.recv(65536):
                    found += data
        return found

    def seen_from_outside(self) -> bytes:
        """What any user of this machine can read of the first process: command line, environment (root only), files."""
        directory, process = self.planes[0].node.directory, Path(f"/proc/{self.planes[0].process.pid}")
        found = b"".join((process / name).read_bytes() for name in ("cmdline", "environ", "status", "stat", "comm", "maps"))
        for path in directory.rglob("*"):
            found += path.name.encode()
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
                found += path.read_bytes()
        return found


def test_nothing_is_seen_of_keys_in_good_days(machine: None) -> None:
    with Pair.lay() as pair:
        for plane in pair.planes:
            plane.wait_until_ready()
        for _ in range(2):  # and the keys are changed
            pair.configure()
            wait_for(pair.reached, "the other one answers")
        assert pair.reached(3) == 3
        assert len(pair.secrets) > 15

        metrics, seen = pair.metrics(), pair.seen_from_outside()
        for plane in pair.planes:
            assert plane.stop() == 0

        assert b"wireguard_bytes_sent" in metrics and b"HTTP/1" in metrics
        assert b"interface up" in pair.log
        for where, text in (("metrics", metrics), ("files and /proc", seen), ("log", pair.log)):
            assert leaks(text, pair.secrets) == [], where


def test_the_state_file_is_where_the_keys_are(machine: None) -> None:
    """So that the test above would see them, were the file to be read by others."""
    with Pair.lay() as pair:
        for plane in pair.planes:
            plane.wait_until_ready()
        pair.configure()
        directory = pair.planes[0].node.directory / "state"
        assert leaks(pair.seen_from_outside(), pair.secrets) == []

        (directory / "wg0.conf").chmod(0o644)

        assert leaks(pair.seen_from_outside(), pair.secrets)
        for plane in pair.planes:
            plane.stop()


@pytest.mark.parametrize("form", ["half", "base64"])
def test_a_leak_of_a_session_key_is_found(machine: None, form: str) -> None:
    with Pair.lay(f"leak:{form}") as pair:
        for plane in pair.planes:
            plane.wait_until_ready()
        pair.configure()
        wait_for(pair.reached, "the other one answers")

        assert leaks(pair.log, pair.secrets)
        for plane in pair.planes:
            plane.stop()


# Bad days ------------------------------------------------------------------------------------------------------------


def bad_requests(key: bytes) -> Iterator[bytes]:
    """What somebody might send who has got a key and a mistake."""
    hexed, based = key.hex(), b64encode(key).decode()
    good = f"private_key={hexed}\n"
    for text in (hexed, based, hexed[:-1], hexed + "0", based[:-1], hexed.upper() + "z", f" {hexed}", f'"{hexed}"', f"0x{hexed}"):
        for name in (
            "private_key",
            "preshared_key",
            "public_key",
            "listen_port",
            "fwmark",
            "endpoint",
            "allowed_ip",
            "privatekey",
        ):
            device = "" if name in ("private_key", "listen_port", "fwmark", "public_key") else f"public_key={'cd' * 32}\n"
            if (name, text) != ("public_key", hexed):  # which is no mistake that anybody could see
                yield f"set=1\n{device}{name}={text}\n\n".encode()
        yield f"set=1\n{text}\n\n".encode()
        yield f"set=1\n{text}=private_key\n\n".encode()
        yield f"set=1\nprivate_key {text}\n\n".encode()
        yield f"set=1\nPrivateKey: {text}=\n\n".encode()
        yield f"set=1\npublic_key={'cd' * 32}\nendpoint={text}:51820\n\n".encode()
        yield f"set=1\npublic_key={'cd' * 32}\nendpoint=[fe80::1%{text}]:51820\n\n".encode()
        yield f"set=1\npublic_key={'cd' * 32}\nallowed_ip={text}/32\n\n".encode()
        yield f"get=1\n{text}\n\n".encode()
        yield f"{text}\n\n".encode()
    yield f"set=1\n{good}nonsense\n\n".encode()
    yield f"set=1\n{good}listen_port=0x\n\n".encode()
    yield f"set=1\n{good}".encode()  # and hangs up
    yield b"set=1\nprivate_key=" + key + b"\n\n"
    yield b"set=1\n" + key + b"=1\n\n"


def test_bad_requests_are_answered_and_their_keys_not_repeated(machine: None) -> None:
    with Pair.lay() as pair:
        for plane in pair.planes:
            plane.wait_until_ready()
        key = bytes(range(0xE0, 0x100))
        pair.given.append(key)

        requests = list(bad_requests(key))
        for request in requests:
            pair.request(request)

        assert pair.log.count(b"configuration refused") > len(requests) / 2
        assert leaks(pair.log, pair.secrets) == []
        assert leaks(pair.metrics(), pair.secrets) == []
        for plane in pair.planes:
            assert plane.stop() == 0


CRASHES = {
    "wgpy.core.device:Device.apply": "while it is configured",
    "wgpy.uapi:SetReader.read": "while a request is read",
    "wgpy.uapi:SetReader.changes": "when it has been read",
    "wgpy.wgconf:format": "in the thread that keeps the configuration",
    "wgpy.uapi:format_get_chunks": "while an answer with keys in it is made",
    "noise.handshake:SymmetricState.mix_preshared_key": "in the middle of a handshake, in a callback of the loop",
    "noise.handshake:SymmetricState.split": "with session keys at hand",
    "noise.keypair:Keypair.derived": "with a new keypair at hand",
}


@pytest.mark.parametrize("where", CRASHES, ids=list(CRASHES.values()))
def test_a_traceback_holds_no_key(machine: None, where: str) -> None:
    """With asyncio's debugging on top, which has more to say about who called whom."""
    with Pair.lay(f"crash:{where}", "PYTHONASYNCIODEBUG=1") as pair:
        for plane in pair.planes:
            wait_for(plane.client.path.exists, "there is a socket")
        with contextlib.suppress(ClientError):
            pair.configure()
        with contextlib.suppress(ClientError):
            pair.planes[0].client.get()

        wait_for(lambda: b"was made to fail" in pair.log, "it has failed")
        time.sleep(0.2)  # and gone on, or not

        assert b"Traceback" in pair.log
        assert len(pair.secrets) >= 3
        assert leaks(pair.log, pair.secrets) == []
        for plane in pair.planes:
            plane.process.terminate()
            plane.process.wait(PATIENCE)


def test_a_state_file_that_cannot_be_read_is_not_repeated(machine: None) -> None:
    key = os.urandom(32)
    based = b64encode(key).decode()
    with Topology.create() as topology:
        node = topology.add_node("n1", node_addresses(1))
        state = node.directory / "state"
        state.mkdir()
        for line in (
            f"PrivateKey = {based[:-1]}",
            f"PrivateKey {based}",
            f"{based}",
            f"{based} = PrivateKey",
            f"ListenPort = {based}",
        ):
            (state / "wg0.conf").write_text(f"[Interface]\n{line}\n")
            done = node.run([*WGPY, "run", "wg0", "--state", str(state)], check=False)

            assert (done.returncode, done.stdout) == (1, "")
            assert "cannot be read: line 2: " in done.stderr
            assert leaks(done.stderr.encode(), [key]) == []


# repr ----------------------------------------------------------------------------------------------------------------

PUBLIC = {
    *("public", "public_key", "remote_static", "timestamp"),
    *("unencrypted_ephemeral", "encrypted_static", "encrypted_timestamp", "encrypted_nothing", "encrypted_cookie", "nonce"),
    *("encrypted_packet", "mac1", "mac2"),
    *("source", "arrival", "destination", "transport"),
    *("body",),
}
"""Fields of bytes that ``repr`` may show: public keys and what goes over the network as it is, addresses, a page of metrics."""


def classes() -> Iterator[type]:
    for package in (noise, wgpy):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                module = importlib.import_module(found.name)
                yield from (one for one in vars(module).values() if isinstance(one, type) and one.__module__ == found.name)


def shown_bytes(cls: type) -> set[str]:
    """The fields of bytes that ``repr`` shows of a dataclass or a named tuple."""
    if dataclasses.is_dataclass(cls):
        return {one.name for one in dataclasses.fields(cls) if one.repr and "bytes" in str(one.type)}
    return {name for name in getattr(cls, "_fields", ()) if "bytes" in str(cls.__annotations__[name])}


def test_repr_shows_no_bytes_but_those_that_are_known_to_be_public() -> None:
    """So that whoever adds a field has to say so."""
    found = {cls.__qualname__: shown_bytes(cls) for cls in classes()}

    assert len(found) > 50
    assert {name: shown - PUBLIC for name, shown in found.items() if shown - PUBLIC} == {}
    assert {name for name in PUBLIC if not any(name in shown for shown in found.values())} == set(), "no longer needed"


def test_nothing_that_a_device_is_made_of_shows_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that can be reached from devices that have shaken hands, and from what configures them."""
    for name in RECORDED:
        monkeypatch.setattr(crypto, name, getattr(crypto, name))
    monkeypatch.setattr("secrets.token_bytes", os.urandom)
    told = os.open(tmp_path / "recorded", os.O_WRONLY | os.O_CREAT)
    try:
        record(told, None)
        preshared_key = os.urandom(32)
        sim = Sim.pair(preshared_key=preshared_key)
        sim.connect("A", "B")
        sim.cut("B")
        sim.advance(REKEY_TIMEOUT)
        sim["A"].device.send_initiation(sim["A"].peer_of(sim["B"]), sim.now)
    finally:
        os.close(told)
    device = sim["A"].device
    config = device.snapshot().config
    reader = uapi.SetReader()
    for line in uapi.format_set(changes_to(config)).splitlines():
        reader.read(line)
    roots = [sim, device.snapshot(), config, *changes_to(config), reader, wgconf.parse(wgconf.format(config))]
    secrets = {preshared_key, *map(bytes.fromhex, (tmp_path / "recorded").read_text().split())}

    shown: dict[str, bytes] = defaultdict(bytes)
    for one in reachable(roots):
        shown[type(one).__name__] += repr(one).encode()

    assert {
        "Peer",
        "Keypair",
        "LocalStatic",
        "RemoteStatic",
        "InitiatorHandshake",
        "CookieChecker",
        "DeviceConfig",
    } <= shown.keys()
    assert {name: leaks(text, secrets) for name, text in shown.items() if leaks(text, secrets)} == {}


def reachable(roots: Iterable[object]) -> Iterator[object]:
    """The objects of noise's and wgpy's own classes that ``roots`` hold, however deep."""
    seen: dict[int, object] = {}
    waiting = [*roots]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen[id(one)] = one
        waiting += [
            next_one for next_one in gc.get_referents(one) if not isinstance(next_one, dict) or "__name__" not in next_one
        ]
        if type(one).__module__.partition(".")[0] in ("noise", "wgpy"):
            yield one
