"""UAPI to the letter (2.1 to 2.3; https://www.wireguard.com/xplatform/): framing, keys and formats, order, errno.

The values of errno are compared without their sign, but for the one row that is about it.
"""

import base64
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from noise.crypto import clamp
from tests.conformance.behaviour import Broken, NotApplicable, behaviour, expect
from tests.conformance.boxes import INTERFACE, PORT, ProcessBox
from tests.conformance.peer import INITIATION, TRANSPORT
from tests.conformance.trial import Trial
from tests.e2e.lab import inside
from wgpy.config import NO_KEY, Endpoint, SetDevice, SetPeer

KEYS = [bytes([n]) * 32 for n in range(1, 10)]
"""Public keys of nobody."""


class Connection:
    """One connection to the UAPI socket, byte by byte."""

    def __init__(self, trial: Trial) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(trial.box.socket_file))
        self._unread = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str) -> None:
        try:
            self.socket.sendall(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            raise Broken("it has hung up before it was asked all") from None

    def answer(self) -> str:
        """The next answer, with its blank line; what there is of it if the connection is closed."""
        while b"\n\n" not in self._unread:
            try:
                piece = self.socket.recv(1 << 18)
            except (TimeoutError, ConnectionResetError):
                piece = b""
            if not piece:
                break
            self._unread += piece
        said, end, self._unread = self._unread.partition(b"\n\n")
        return (said + end).decode()

    def is_hung_up(self) -> bool:
        """Whether the other end has closed, and has said nothing."""
        try:
            return not self._unread and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def ask(trial: Trial, request: str) -> str:
    """The answer to one request on a connection of its own."""
    with Connection(trial) as connection:
        connection.send(request)
        return connection.answer()


def errno_of(answer: str) -> int:
    """Raises Broken if there is none."""
    found = re.search(r"(?:^|\n)errno=(-?\d+)\n\n$", answer)
    expect(found is not None, f"the answer does not end with errno and a blank line: {answer[-40:]!r}")
    assert found is not None
    return int(found[1])


def set_lines(trial: Trial, *lines: str) -> int:
    """The errno, without its sign, of a request to set these lines."""
    return abs(errno_of(ask(trial, "".join(f"{line}\n" for line in ("set=1", *lines, "")))))


def get_lines(trial: Trial) -> list[str]:
    """The answer to a get, without its errno. Raises Broken if that is not 0."""
    answer = ask(trial, "get=1\n\n")
    expect(errno_of(answer) == 0, f"a get ends with {answer.splitlines()[-2:]}")
    return answer.splitlines()[:-2]


def expect_taken(trial: Trial, *lines: str) -> None:
    number = set_lines(trial, *lines)
    expect(number == 0, f"{lines[-1][:60]!r} is refused with {name_of(number)}")


def expect_refused(trial: Trial, cases: Iterable[tuple[str, ...]], wanted: int) -> None:
    """Raise Broken unless a request with these lines is refused for this reason, and nothing has changed."""
    for lines in cases:
        before = get_lines(trial)
        number = set_lines(trial, *lines)
        expect(number == wanted, f"{lines[-1][:80]!r} has {name_of(number)} for an answer instead of {name_of(wanted)}")
        expect(get_lines(trial) == before, f"{lines[-1][:80]!r} is refused, and has changed something all the same")


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "errno 0"


def give_key(trial: Trial) -> None:
    """A private key, without which some take no peers. The interface stays down."""
    trial.box.set([SetDevice(private_key=trial.private)])


def public(key: bytes) -> str:
    return f"public_key={key.hex()}"


# 2.1 Transport --------------------------------------------------------------------------------------------------------


@behaviour("2.1", "the socket is its owner's alone", uapi=True)
def socket_is_private(trial: Trial) -> None:
    mode = stat.S_IMODE(trial.box.socket_file.stat().st_mode)
    expect(not mode & 0o077, f"the socket has mode {mode:04o}")


@behaviour("2.1", "a connection carries several operations, one after the other", uapi=True)
def several_operations(trial: Trial) -> None:
    with Connection(trial) as connection:
        for number in range(3):
            connection.send(f"set=1\nfwmark={number + 1}\n\n")
            expect(errno_of(connection.answer()) == 0, f"the set of round {number + 1} is refused")
            connection.send("get=1\n\n")
            expect(f"fwmark={number + 1}\n" in connection.answer(), f"the get of round {number + 1} does not show what was set")


@behaviour("2.1", "a request may come in pieces", uapi=True)
def request_in_pieces(trial: Trial) -> None:
    with Connection(trial) as connection:
        for piece in "set=1\nfwmark=77\n\n":
            connection.send(piece)
            time.sleep(0.01)
        expect(errno_of(connection.answer()) == 0, "a request that came byte by byte is refused")
    expect("fwmark=77" in get_lines(trial), "a request that came byte by byte has changed nothing")


@behaviour("2.1", "an unknown operation ends the connection without an answer", uapi=True)
def unknown_operation(trial: Trial) -> None:
    for request in ("put=1\n\n", "get=2\n\n", "\n\n", "fwmark=1\n\n"):
        with Connection(trial) as connection:
            connection.send(request)
            expect(connection.is_hung_up(), f"{request!r} is answered, or waited on")
    get_lines(trial)


@behaviour("2.1", "a get that says more than get=1 is refused with EINVAL", uapi=True)
def get_with_more(trial: Trial) -> None:
    number = abs(errno_of(ask(trial, "get=1\nfwmark=1\n\n")))
    expect(number == errno.EINVAL, f"the answer is {name_of(number)}")


@behaviour("2.1", "errno is negative after a set and positive after a get, as wg reads them", uapi=True)
def errno_signs(trial: Trial) -> None:
    number = errno_of(ask(trial, "set=1\nfwmark=what\n\n"))
    expect(number == -errno.EINVAL, f"a set is refused with errno={number} instead of {-errno.EINVAL}")
    number = errno_of(ask(trial, "get=1\nfwmark=1\n\n"))
    expect(number == errno.EINVAL, f"a get is refused with errno={number} instead of {errno.EINVAL}")


@behaviour("2.1", "130,560 allowed IPs come back in one answer, each in its place", seconds=15, uapi=True)
def many_allowed_ips(trial: Trial) -> None:
    """As netns.sh has it: a /16 for each of 255 · 256, and a /128 for each of as many."""
    give_key(trial)
    v4 = [f"allowed_ip={IPv4Address(a << 24 | b << 16)}/16" for a in range(255) for b in range(256)]
    v6 = [f"allowed_ip={IPv6Address(0xFD << 120 | n)}/128" for n in range(255 * 256)]
    wanted = v4 + v6
    for start in range(0, len(wanted), 40_000):
        expect_taken(trial, public(KEYS[0]), *wanted[start : start + 40_000])
    shown = [line for line in get_lines(trial) if line.startswith("allowed_ip=")]
    expect(len(shown) == len(wanted), f"{len(shown)} of {len(wanted)} allowed IPs come back")
    expect(shown == wanted, "they are listed in another order, or others are")


# 2.2 Get --------------------------------------------------------------------------------------------------------------


@behaviour("2.2", "the answer to a get has these lines, in this order and this form", uapi=True)
def get_format(trial: Trial) -> None:
    private, preshared = clamp(os.urandom(32)), os.urandom(32)
    device = [f"private_key={private.hex()}", "listen_port=51820", "fwmark=4711"]
    endpoint = f"{trial.plan.outer(4, 1)}:1234"
    counts = ["last_handshake_time_sec=0", "last_handshake_time_nsec=0", "tx_bytes=0", "rx_bytes=0"]
    one = [public(KEYS[0]), f"preshared_key={preshared.hex()}", "protocol_version=1", f"endpoint={endpoint}", *counts]
    one += ["persistent_keepalive_interval=0", "allowed_ip=10.1.0.0/16", "allowed_ip=fd00:1::/64", "allowed_ip=10.0.0.1/32"]
    expect_taken(trial, *device, *(line for line in one if line not in counts))
    expect_answer(trial, [*device, *one])
    other = [public(KEYS[1]), f"preshared_key={NO_KEY.hex()}", "protocol_version=1", *counts, "persistent_keepalive_interval=25"]
    expect_taken(trial, "replace_peers=true", public(KEYS[1]), "persistent_keepalive_interval=25")
    expect_answer(trial, [*device, *other])


def expect_answer(trial: Trial, wanted: list[str]) -> None:
    shown = get_lines(trial)
    for number, (line, expected) in enumerate(zip(shown, wanted, strict=False), start=1):
        if line != expected:
            secret = "_key=" in expected or "_key=" in line
            expect(False, f"line {number} of the answer is {line[:14]!r}" + ("" if secret else f" ({line!r} for {expected!r})"))
    expect(len(shown) == len(wanted), f"the answer has {len(shown)} lines instead of {len(wanted)}")


@behaviour("2.2", "key, port and mark have no line where there are none", uapi=True)
def get_of_nothing(trial: Trial) -> None:
    shown = [line.partition("=")[0] for line in get_lines(trial)]
    expect(not shown, f"a device that nobody has configured shows {', '.join(shown)}")
    private = clamp(os.urandom(32))
    expect_taken(trial, f"private_key={private.hex()}", "fwmark=7", "listen_port=51820")
    expect_taken(trial, f"private_key={NO_KEY.hex()}", "fwmark=0", "listen_port=0")
    shown = [line.partition("=")[0] for line in get_lines(trial)]
    expect(not shown, f"a device from which all was taken shows {', '.join(shown)}")


@behaviour("2.2", "an endpoint is shown as it is written best: IPv6 in brackets, and in its shortest form", uapi=True)
def endpoint_format(trial: Trial) -> None:
    give_key(trial)
    for given, shown in (
        ("[2001:0db8:0:0:0:0:0:0001]:51820", "[2001:db8::1]:51820"),
        ("[::1]:1", "[::1]:1"),
        ("192.0.2.255:65535", "192.0.2.255:65535"),
    ):
        expect_taken(trial, public(KEYS[0]), f"endpoint={given}")
        lines = [line for line in get_lines(trial) if line.startswith("endpoint=")]
        expect(lines == [f"endpoint={shown}"], f"{given} is shown as {lines}")


# 2.3 Set --------------------------------------------------------------------------------------------------------------


@behaviour("2.3", "a line without '=' is refused with EPROTO", uapi=True)
def line_without_equals(trial: Trial) -> None:
    give_key(trial)
    expect_refused(trial, [("fwmark",), (public(KEYS[0]), "remove")], errno.EPROTO)


@behaviour("2.3", "an unknown key is refused with EINVAL, and so is one in the wrong place", uapi=True)
def unknown_keys(trial: Trial) -> None:
    give_key(trial)
    cases = [
        ("colour=blue",),
        ("=1",),
        (public(KEYS[0]), "colour=blue"),
        ("allowed_ip=10.0.0.0/8",),
        ("preshared_key=" + NO_KEY.hex(),),
        (public(KEYS[0]), "listen_port=1"),
        (public(KEYS[0]), "replace_peers=true"),
    ]
    expect_refused(trial, cases, errno.EINVAL)


@behaviour("2.3", "of truth values only 'true' is taken, all else is EINVAL", uapi=True)
def truth_values(trial: Trial) -> None:
    give_key(trial)
    peer = public(KEYS[0])
    expect_taken(trial, peer)
    for value in ("false", "1", "True", "yes", ""):
        cases = [(f"replace_peers={value}",), (peer, f"remove={value}"), (peer, f"update_only={value}")]
        expect_refused(trial, [*cases, (peer, f"replace_allowed_ips={value}")], errno.EINVAL)


@behaviour("2.3", "numbers are decimal and have a limit: 16 bits for port and interval, 32 for the mark", uapi=True)
def numbers(trial: Trial) -> None:
    give_key(trial)
    peer = public(KEYS[0])
    expect_taken(trial, "listen_port=65535", "fwmark=4294967295", peer, "persistent_keepalive_interval=65535")
    shown = get_lines(trial)
    for line in ("listen_port=65535", "fwmark=4294967295", "persistent_keepalive_interval=65535"):
        expect(line in shown, f"{line!r} was set and is not shown")
    for key, bits in (("listen_port", 16), ("fwmark", 32)):
        expect_refused(trial, [(f"{key}={value}",) for value in bad_numbers(bits)], errno.EINVAL)
    expect_refused(trial, [(peer, f"persistent_keepalive_interval={value}") for value in bad_numbers(16)], errno.EINVAL)


def bad_numbers(bits: int) -> list[str]:
    return [str(1 << bits), "-1", "", "off", "0x10", "1.0", " 1", "1 ", "1_0", str(1 << 70)]


@behaviour("2.3", "keys are 64 hex digits, of either case; all else is EINVAL", uapi=True)
def keys(trial: Trial) -> None:
    give_key(trial)
    good = bytes(range(0xA0, 0xC0))
    expect_taken(trial, f"public_key={good.hex().upper()}", f"preshared_key={good.hex().upper()}")
    expect(public(good) in get_lines(trial), "a key in upper case is not shown in lower case")
    bad = [good.hex()[:-1], good.hex() + "a", good.hex()[:-1] + "g", "", base64.b64encode(good).decode(), good.hex()[:-2]]
    cases = [(f"public_key={value}",) for value in bad] + [(f"private_key={value}",) for value in bad]
    expect_refused(trial, cases + [(public(good), f"preshared_key={value}") for value in bad], errno.EINVAL)


@behaviour("2.3", "a private key is clamped, and shown like that", uapi=True)
def private_key_is_clamped(trial: Trial) -> None:
    expect_taken(trial, "private_key=" + "ff" * 32)
    expect("private_key=" + clamp(b"\xff" * 32).hex() in get_lines(trial), "the key shown is not the clamped one")


@behaviour("2.3", "an allowed IP is an address and a length, its host bits are masked; all else is EINVAL", uapi=True)
def allowed_ip_format(trial: Trial) -> None:
    give_key(trial)
    peer = public(KEYS[0])
    given = ["10.1.2.3/16", "0.0.0.0/0", "192.0.2.1/32", "2001:DB8::1/33", "::/0", "fd00::1/128", "10.1.2.3/31"]
    shown = ["10.1.0.0/16", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/33", "::/0", "fd00::1/128", "10.1.2.2/31"]
    expect_taken(trial, peer, *(f"allowed_ip={text}" for text in given))
    came = [line.removeprefix("allowed_ip=") for line in get_lines(trial) if line.startswith("allowed_ip=")]
    expect(sorted(came) == sorted(shown), f"{given} are shown as {came}")
    bad = ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/255.0.0.0", "10.0.0.0/", "10.0.0.0/-1", "/8", "", "there/8"]
    expect_refused(trial, [(peer, f"allowed_ip={text}") for text in [*bad, "10.0.0.0/08", "-", "-10.0.0.0"]], errno.EINVAL)


@behaviour("2.3", "an endpoint is a numeric address and a port; all else is EINVAL", uapi=True)
def endpoint_is_numeric(trial: Trial) -> None:
    give_key(trial)
    peer = public(KEYS[0])
    expect_taken(trial, peer)
    bad = [
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.256:1",
        "localhost:1",
        ":1",
        "",
        "2001:db8::1:1",
    ]
    expect_refused(trial, [(peer, f"endpoint={text}") for text in [*bad, "[2001:db8::1]", "[192.0.2.1:1"]], errno.EINVAL)


@behaviour("2.3", "the version of the protocol is 1; another is EINVAL", uapi=True)
def protocol_version(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, public(KEYS[0]), "protocol_version=1")
    expect_refused(trial, [(public(KEYS[0]), f"protocol_version={value}") for value in ("0", "2", "")], errno.EINVAL)


@behaviour("2.3", "a bad line changes nothing: not what stands before it either", uapi=True)
def bad_line_changes_nothing(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, "fwmark=1", public(KEYS[0]), "allowed_ip=10.1.0.0/16", "persistent_keepalive_interval=5")
    good = [
        "fwmark=2",
        "replace_peers=true",
        public(KEYS[1]),
        "allowed_ip=10.2.0.0/16",
        public(KEYS[0]),
        "replace_allowed_ips=true",
    ]
    expect_refused(trial, [(*good, "colour=blue"), (*good, "allowed_ip=nowhere")], errno.EINVAL)


@behaviour("2.3", "a port that is in use is refused with EADDRINUSE, and the old one goes on", uapi=True)
def port_in_use(trial: Trial) -> None:
    box = trial.box
    if not isinstance(box, ProcessBox):
        raise NotApplicable(f"{box.name} has no UAPI socket")
    peer = trial.peer()
    session = peer.initiate()
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with inside(box.namespace, lambda family=family: socket.socket(family, socket.SOCK_DGRAM)) as taken:  # type: ignore[misc]
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind((anywhere, PORT + 1))
            number = set_lines(trial, f"listen_port={PORT + 1}")
        expect(number == errno.EADDRINUSE, f"a port in use has {name_of(number)} for an answer")
        expect(f"listen_port={PORT}" in get_lines(trial), "another port is shown than the one that goes on")
        trial.expect_inward(session, "a packet to the old port, after another could not be had")
        trial.expect_outward(session, "a packet from the old port, after another could not be had")


@behaviour("2.3", "update_only changes a peer that exists, and makes none", uapi=True)
def update_only(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, public(KEYS[0]), "allowed_ip=10.1.0.0/16")
    for key, interval in ((KEYS[1], 5), (KEYS[0], 6)):
        expect_taken(
            trial, public(key), "update_only=true", f"persistent_keepalive_interval={interval}", "allowed_ip=10.2.0.0/16"
        )
    shown = get_lines(trial)
    expect(public(KEYS[1]) not in shown, "update_only has made a peer")
    expect("persistent_keepalive_interval=6" in shown and "allowed_ip=10.2.0.0/16" in shown, "an existing peer was not changed")


@behaviour("2.3", "a peer is removed by remove=true, and to remove one that is not there is no mistake", uapi=True)
def remove(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, public(KEYS[0]), public(KEYS[1]))
    expect_taken(trial, public(KEYS[0]), "remove=true", public(KEYS[2]), "remove=true")
    shown = [line for line in get_lines(trial) if line.startswith("public_key=")]
    expect(shown == [public(KEYS[1])], f"{len(shown)} peers are left instead of the one that was not removed")


@behaviour("2.3", "replace_peers and replace_allowed_ips take away what stood before them, and keep what follows", uapi=True)
def replacements(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, public(KEYS[0]), "allowed_ip=10.1.0.0/16", public(KEYS[1]), "allowed_ip=10.2.0.0/16")
    expect_taken(trial, public(KEYS[1]), "replace_allowed_ips=true", "allowed_ip=10.3.0.0/16")
    prefixes = [line for line in get_lines(trial) if line.startswith("allowed_ip=")]
    expect(sorted(prefixes) == ["allowed_ip=10.1.0.0/16", "allowed_ip=10.3.0.0/16"], f"a replacement leaves {prefixes}")
    expect_taken(trial, "replace_peers=true", public(KEYS[2]), "allowed_ip=10.1.0.0/16")
    shown = [line for line in get_lines(trial) if line.startswith(("public_key=", "allowed_ip="))]
    expect(shown == [public(KEYS[2]), "allowed_ip=10.1.0.0/16"], "replacing the peers leaves others than the new one")


@behaviour("2.3", "an allowed IP with a minus is taken away from the peer, if it has it", uapi=True)
def allowed_ip_minus(trial: Trial) -> None:
    give_key(trial)
    expect_taken(trial, public(KEYS[0]), "allowed_ip=10.1.0.0/16", "allowed_ip=fd00:1::/64", "allowed_ip=10.2.0.0/16")
    expect_taken(trial, public(KEYS[1]), "allowed_ip=-10.1.0.0/16")
    expect_taken(trial, public(KEYS[0]), "allowed_ip=-10.2.0.0/16", "allowed_ip=-fd00:1::/64", "allowed_ip=-10.9.0.0/16")
    shown = [line for line in get_lines(trial) if line.startswith("allowed_ip=")]
    expect(shown == ["allowed_ip=10.1.0.0/16"], f"what is left is {shown}")


# wg(8) ----------------------------------------------------------------------------------------------------------------


def base64_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


@behaviour("2.3", "wg shows what was set", seconds=2)
def wg_show(trial: Trial) -> None:
    trial.start()
    preshared = os.urandom(32)
    allowed = (trial.plan.network(4, 88), trial.plan.network(6, 88))
    endpoint = Endpoint(str(trial.plan.outer(4, 3)), 4321)
    trial.box.set([SetPeer(KEYS[0], preshared_key=preshared, endpoint=endpoint, allowed_ips=allowed)])
    device, peer = trial.box.run(["wg", "show", INTERFACE, "dump"]).stdout.splitlines()
    wanted = [base64_key(trial.private), base64_key(trial.public), str(PORT), "off"]
    expect(device.split("\t") == wanted, "wg shows another device than was set")
    wanted = [base64_key(KEYS[0]), base64_key(preshared), str(endpoint), ",".join(map(str, allowed)), "0", "0", "0", "off"]
    expect(peer.split("\t") == wanted, "wg shows another peer than was set")


@behaviour("2.3", "wg sets what there is to set, and takes it away", seconds=2)
def wg_set(trial: Trial) -> None:
    trial.start()
    peer = trial.peer(is_known=False)
    words = ["peer", base64_key(peer.public), "endpoint", str(Endpoint(*peer.address)), "persistent-keepalive", "25"]
    run_wg(trial, "set", INTERFACE, "fwmark", "0x77", *words, "allowed-ips", str(trial.plan.network(4, 88)))
    peer.respond(peer.expect(INITIATION, why="after wg had set the peer and its keepalive"))
    peer.expect(TRANSPORT, why="to confirm the session")
    shown = trial.box.get()
    expect(shown.fwmark == 0x77, f"the mark is {shown.fwmark:#x} instead of 0x77")
    expect(shown.peers[0].config.persistent_keepalive == 25, "the keepalive that wg set is not shown")
    expect(shown.peers[0].config.allowed_ips == (trial.plan.network(4, 88),), "the allowed IPs that wg set are not shown")
    run_wg(trial, "set", INTERFACE, "fwmark", "off", "peer", base64_key(peer.public), "remove")
    shown = trial.box.get()
    expect(shown.fwmark == 0 and not shown.peers, "what wg takes away is still there")


@behaviour("2.3", "after wg syncconf it is what the file says, and what does not differ goes on", seconds=2)
def wg_syncconf(trial: Trial) -> None:
    peer = trial.peer()
    session = peer.initiate()
    trial.box.set([SetPeer(KEYS[0]), SetPeer(KEYS[1])])
    # The section of the interface, with its secret, does not pass through here.
    interface = f"wg showconf {INTERFACE} | sed '/^.Peer/,$d'"
    peers = [
        f"[Peer]\nPublicKey={base64_key(peer.public)}\nAllowedIPs={trial.plan.network(4, 88)}\n",
        f"[Peer]\nPublicKey={base64_key(KEYS[2])}\n",
    ]
    run(trial, ["sh", "-c", f'{{ {interface}; echo "$0"; }} | wg syncconf {INTERFACE} /dev/stdin', "".join(peers)])
    expect({each.config.public_key for each in trial.box.get().peers} == {peer.public, KEYS[2]}, "syncconf leaves other peers")
    trial.expect_inward(session, "a packet under a session that syncconf has no reason to touch")
    trial.expect_outward(session, "a packet under a session that syncconf has no reason to touch")


@behaviour("2.3", "after wg setconf it is what the file says: the peers, and no key where there is none", seconds=2)
def wg_setconf(trial: Trial) -> None:
    peer = trial.peer(keepalive=25)
    text = f"[Interface]\nFwMark=0x5\n[Peer]\nPublicKey={base64_key(KEYS[2])}\nAllowedIPs=10.5.0.0/16,fd00:5::/64\n"
    run(trial, ["sh", "-c", f'echo "$0" | wg setconf {INTERFACE} /dev/stdin', text])
    shown = trial.box.get()
    expect(shown.private_key == NO_KEY, "the private key is still there")
    expect(shown.fwmark == 5, f"the mark is {shown.fwmark} instead of 5")
    expect([each.config.public_key for each in shown.peers] == [KEYS[2]], "setconf leaves other peers than those of the file")
    expect(
        shown.peers[0].config.allowed_ips == (ip_network("10.5.0.0/16"), ip_network("fd00:5::/64")), "they have other allowed IPs"
    )
    peer.drain()
    peer.expect_silence(0.5, "after setconf took key and peer away")


def run_wg(trial: Trial, *words: str) -> None:
    run(trial, ["wg", *words])


def run(trial: Trial, argv: list[str]) -> None:
    """Run a command in the box. Raises Broken if it fails."""
    done = trial.box.run(argv, check=False)
    expect(done.returncode == 0, f"wg fails: {done.stderr.strip()}")
