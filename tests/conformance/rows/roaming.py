"""Endpoints, source addresses and sockets (1.11, 1.12): where a peer is, and what it knows the box by."""

import json
import os
import socket
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_network

from controller.demo.topology import Address
from tests.conformance.behaviour import behaviour, expect
from tests.conformance.boxes import BOX_HOSTS, PORT
from tests.conformance.peer import INITIATION, PATIENCE, RESPONSE, TRANSPORT, Datagram, Peer, Session, sockaddr
from tests.conformance.trial import Sniffer, Trial
from tests.e2e.lab import inside
from wgpy.config import Endpoint, SetDevice, SetPeer

MOVES = [(6, 6), (6, 4), (4, 4), (4, 6)]
"""IP versions of the way before, and after."""
FAMILIES = (6, 4)
"""IPv6 first: wireguard-go cannot send IPv6 after IPv4 (1.11), which is no matter of most rows."""
ELSEWHERE = 5
"""The host of the tester that a peer moves to."""


def move(trial: Trial, peer: Peer, version: int, host: int = ELSEWHERE) -> None:
    """Let a peer be somewhere else, from where it has said nothing yet."""
    peer.move(trial.plan.outer(version, host))
    speak_to(trial, peer, 11)


def speak_to(trial: Trial, peer: Peer, host: int) -> None:
    """Let a peer send to this address of the box from now on."""
    version = 6 if ":" in peer.address[0] else 4
    peer.box = (str(trial.plan.outer(version, host)), PORT)


def expect_at(trial: Trial, peer: Peer, session: Session, why: str) -> Datagram:
    """Raise Broken unless a packet for the peer comes to where it is now, and the box says so; that datagram."""
    trial.outward(b"to you")
    datagram = peer.receive(PATIENCE)
    expect(datagram is not None and session.open(datagram), f"a packet does not follow {why}")
    assert datagram is not None
    shown = trial.known(peer).config.endpoint
    expect(shown == Endpoint(*peer.address), f"the endpoint shown is {shown} instead of {Endpoint(*peer.address)}, {why}")
    return datagram


# 1.11 Roaming ---------------------------------------------------------------------------------------------------------


def each_move(trial: Trial, say: Callable[[Peer, Session], Session], what: str) -> None:
    """Raise Broken unless the endpoint follows what ``say`` sends from another place; it gives the session from then on."""
    for number, (before, after) in enumerate(MOVES):
        peer = trial.peer(version=before, host=1 + number)
        session = peer.initiate()
        trial.expect_outward(session, "a packet to the endpoint")
        move(trial, peer, after)
        session = say(peer, session)
        expect_at(trial, peer, session, f"{what} from IPv{before} to IPv{after}")


@behaviour("1.11", "the endpoint follows a keepalive", seconds=2)
def roams_by_keepalive(trial: Trial) -> None:
    def say(peer: Peer, session: Session) -> Session:
        session.send()
        time.sleep(0.1)
        return session

    each_move(trial, say, "a keepalive")


@behaviour("1.11", "the endpoint follows data", seconds=2)
def roams_by_data(trial: Trial) -> None:
    def say(peer: Peer, session: Session) -> Session:
        trial.expect_inward(session, "data from elsewhere")
        return session

    each_move(trial, say, "data")


@behaviour("1.11", "the endpoint follows an initiation, and the response goes there", seconds=2)
def roams_by_initiation(trial: Trial) -> None:
    def say(peer: Peer, session: Session) -> Session:
        time.sleep(0.05)  # no two initiations in an instant
        peer.send(peer.initiation())
        peer.expect(RESPONSE, why="at the place from where the initiation came")
        time.sleep(0.1)
        return session  # the new one is not confirmed: what is sent is still sent under the old one

    each_move(trial, say, "an initiation")


@behaviour("1.11", "the endpoint follows a response", seconds=2)
def roams_by_response(trial: Trial) -> None:
    for number, (before, after) in enumerate(MOVES):
        peer = trial.peer(version=before, host=1 + number)
        trial.outward(b"first")
        initiation = peer.expect(INITIATION)
        message, session = peer.response(initiation)
        move(trial, peer, after)
        peer.send(message)
        session.receive(f"the packet that waited, where the response came from (IPv{before} to IPv{after})")
        expect_at(trial, peer, session, f"a response from IPv{before} to IPv{after}")


@behaviour("1.11", "the endpoint does not follow a replay, a forgery, a cookie reply, or what is for no session", seconds=3)
def stays_for_what_is_not_authenticated(trial: Trial) -> None:
    plan = trial.plan
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        old = peer.initiation()
        peer.send(old)
        session = peer.finish(peer.expect(RESPONSE))
        replayed = session.send()
        time.sleep(0.1)
        forged = bytearray(session.seal(trial.inward(b"forged")))
        forged[-1] ^= 1
        nobodys = bytearray(session.seal(trial.inward(b"nobody's")))
        nobodys[4] ^= 1
        stranger = trial.peer(version=version, host=ELSEWHERE, is_known=False)
        for message in (replayed, bytes(forged), bytes(nobodys), old):
            stranger.send(message)
        bad = bytearray(peer.initiation())
        bad[-17] ^= 1  # in mac1
        stranger.send(bytes(bad))
        time.sleep(0.3)
        trial.expect_outward(session, "a packet to where the peer is, after bad messages from elsewhere")
        shown = trial.known(peer).config.endpoint
        expect(shown == Endpoint(*peer.address), f"the endpoint has moved to {shown}")

        waiting = trial.peer(version=version, host=version + 1, allowed_ips=[ip_network(plan.remote(4, 99))])
        trial.outward(to=plan.remote(4, 99))
        reply = waiting.cookie_reply(waiting.expect(INITIATION))
        stranger.send(reply)
        time.sleep(0.3)
        expect(trial.known(waiting).config.endpoint == Endpoint(*waiting.address), "the endpoint has moved for a cookie reply")
        expect(not stranger.collect(0.1), "it answers whoever sends bad messages")


@behaviour("1.11", "a peer without an endpoint has one as soon as it shakes hands", seconds=1)
def learns_the_endpoint(trial: Trial) -> None:
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version, with_endpoint=False)
        expect(trial.known(peer).config.endpoint is None, "an endpoint is shown that was never set")
        expect_at(trial, peer, peer.initiate(), f"a handshake over IPv{version}")


# 1.11 The sticky source -----------------------------------------------------------------------------------------------


def hosts(trial: Trial, version: int) -> tuple[int, int]:
    """The host number of the address that the box uses of its own accord, and of the other one."""
    plan = trial.plan
    (said,) = json.loads(trial.box.run(["ip", "-json", "route", "get", str(plan.outer(version, 1))]).stdout)
    usual = next(host for host in BOX_HOSTS if str(plan.outer(version, host)) == said["prefsrc"])
    return usual, sum(BOX_HOSTS) - usual


def expect_from(trial: Trial, peer: Peer, source: Address, why: str) -> None:
    """Raise Broken unless the next packet to the peer comes from this address of the box."""
    peer.drain()
    trial.outward(b"from where?")
    came = peer.expect(TRANSPORT, why=why)
    expect(came.source == source, f"a packet came from {came.source} instead of {source} {why}")


def spoken_to_the_other(trial: Trial, version: int, host: int) -> tuple[Peer, Session, Address, Address]:
    """A peer that has spoken to the address of the box that is not its usual one; the usual one, and the other."""
    usual, other = hosts(trial, version)
    peer = trial.peer(version=version, host=host)
    speak_to(trial, peer, other)
    session = peer.initiate()
    time.sleep(0.1)
    return peer, session, trial.plan.outer(version, usual), trial.plan.outer(version, other)


@behaviour("1.11", "who speaks to one address of several is answered from that one")
def sticky_source(trial: Trial) -> None:
    for version in FAMILIES:
        for host in (*hosts(trial, version)[::-1], *hosts(trial, version)):
            address = trial.plan.outer(version, host)
            peer = trial.peer(version=version, host=version)
            speak_to(trial, peer, host)
            peer.send(peer.initiation())
            response = peer.expect(RESPONSE)
            expect(response.source == address, f"a response came from {response.source} instead of {address}")
            session = peer.finish(response)
            session.send()
            time.sleep(0.05)
            expect_from(trial, peer, address, f"after a handshake (IPv{version})")
            speak_to(trial, peer, sum(BOX_HOSTS) - host)
            trial.expect_inward(session, "a packet to the other address")
            expect_from(trial, peer, trial.plan.outer(version, sum(BOX_HOSTS) - host), f"after data (IPv{version})")


@behaviour("1.11", "that holds for a burst, too, which the kernel hands over as one")
def sticky_source_of_a_burst(trial: Trial) -> None:
    for version in FAMILIES:
        usual, other = hosts(trial, version)
        peer = trial.peer(version=version, host=version)
        speak_to(trial, peer, usual)
        session = peer.initiate()
        time.sleep(0.05)
        expect_from(trial, peer, trial.plan.outer(version, usual), f"after a handshake (IPv{version})")
        speak_to(trial, peer, other)
        peer.send_train([session.seal(trial.inward(os.urandom(1000))) for _ in range(20)])
        for _ in range(20):
            expect(trial.inner.receive() is not None, "a packet of a burst did not arrive")
        expect_from(trial, peer, trial.plan.outer(version, other), f"after a burst to that one (IPv{version})")


@behaviour("1.11", "an address that the box has no longer is not answered from", seconds=2)
def source_that_is_gone(trial: Trial) -> None:
    for version in FAMILIES:
        peer, session, usual, address = spoken_to_the_other(trial, version, version)
        expect_from(trial, peer, address, "before that address was gone")
        trial.box.ip(f"addr del {address}/{24 if version == 4 else 64} dev eth0")
        for _ in range(2):
            expect_from(trial, peer, usual, f"after the other was gone (IPv{version})")
        trial.expect_outward(session, "a packet after that")


@behaviour(
    "1.11", "the source address is forgotten for a changed port, a changed mark, and an endpoint that is set anew", seconds=3
)
def source_is_forgotten(trial: Trial) -> None:
    for version in FAMILIES:
        for what in ("port", "mark", "endpoint"):
            peer, _, usual, address = spoken_to_the_other(trial, version, version)
            expect_from(trial, peer, address, "before the change")
            if what == "port":
                trial.box.set([SetDevice(listen_port=PORT + 1)])
            elif what == "mark":
                trial.box.set([SetDevice(fwmark=7)])
            else:
                trial.change(peer, endpoint=Endpoint(*peer.address))
            expect_from(trial, peer, usual, f"after a changed {what} (IPv{version})")
            trial.box.set([SetDevice(listen_port=PORT, fwmark=0)])


@behaviour("1.11", "the source address is forgotten when an initiation has to be repeated", seconds=13)
def source_is_forgotten_by_retries(trial: Trial) -> None:
    addresses = {version: trial.plan.remote(4, 10 + version) for version in FAMILIES}
    expected = []
    for version in FAMILIES:
        usual, other = hosts(trial, version)
        peer = trial.peer(version=version, host=version, allowed_ips=[ip_network(addresses[version])])
        speak_to(trial, peer, other)
        peer.send(peer.initiation())
        peer.expect(RESPONSE)  # and no confirmation: the box knows the address, and has no session to send under
        expected.append((peer, trial.plan.outer(version, other), trial.plan.outer(version, usual)))
    time.sleep(5.2)
    for version in FAMILIES:
        trial.outward(to=addresses[version])
    for peer, address, usual_one in expected:
        first = peer.expect(INITIATION, why="for a packet")
        expect(first.source == address, f"the first initiation came from {first.source} instead of {address}")
        second = peer.expect(INITIATION, 7, "again")
        expect(second.source == usual_one, f"the second initiation came from {second.source} instead of {usual_one}")


@behaviour("1.11", "the source address is forgotten when data goes without an answer", seconds=17)
def source_is_forgotten_by_silence(trial: Trial) -> None:
    peer, _, usual, address = spoken_to_the_other(trial, 4, 1)
    expect_from(trial, peer, address, "after a handshake")
    initiation = peer.expect(INITIATION, 16.5, "after data without an answer")
    expect(initiation.source == usual, f"the initiation came from {initiation.source} instead of {usual}")


@behaviour("1.11", "a new route that leads out elsewhere is followed, with the source address that goes with it", seconds=2)
def route_elsewhere(trial: Trial) -> None:
    """IPv4 only: the kernel does not look at the interface for IPv6."""
    peer = trial.peer()
    session = peer.initiate()
    trial.expect_outward(session, "a packet by the old way")
    trial.box.ip(f"route add {trial.plan.outer(4, 1)} via {trial.plan.inner(4)} dev eth1 src {trial.plan.inner(4, 11)}")
    time.sleep(0.2)
    expect_from(trial, peer, trial.plan.inner(4, 11), "after a route by another interface was laid")


# 1.12 Sockets ---------------------------------------------------------------------------------------------------------


class Probe:
    """A socket that asks whether anybody is there."""

    def __init__(self, trial: Trial, version: int, port: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.socket = inside(trial.tester, lambda: socket.socket(family, socket.SOCK_DGRAM))
        self.socket.connect((str(trial.plan.outer(version, 11)), port))
        self.socket.settimeout(0.3)

    def is_refused(self) -> bool:
        """Whether the port of the box is closed: an ICMP error came back."""
        try:
            self.socket.send(b"?")
            self.socket.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            pass
        return False


SOON = 1.0
"""Seconds in which a process is told by the kernel of its interface, and has acted, while as many others do."""


def is_closed(trial: Trial, version: int, port: int = PORT) -> bool:
    probe = Probe(trial, version, port)
    with probe.socket:
        return probe.is_refused()


@behaviour("1.12", "the port is open while the interface is up, in both families, and at no other time", seconds=3)
def port_is_open_while_up(trial: Trial) -> None:
    trial.box.set([SetDevice(private_key=trial.private, listen_port=PORT)])
    for version in FAMILIES:
        expect(is_closed(trial, version), f"the port is open over IPv{version} before the interface is up")
    trial.box.up()
    for version in FAMILIES:
        open_it = f"the port is closed over IPv{version} though the interface is up"
        trial.wait_until(lambda version=version: not is_closed(trial, version), open_it, SOON)
    trial.box.down()
    for version in FAMILIES:
        close_it = f"the port is open over IPv{version} though the interface is down"
        trial.wait_until(lambda version=version: is_closed(trial, version), close_it, SOON)
    expect(trial.box.get().listen_port == PORT, f"the port shown is {trial.box.get().listen_port} while the interface is down")


@behaviour("1.12", "without a port of its own it takes any, the same in both families, and shows it")
def random_port(trial: Trial) -> None:
    trial.box.set([SetDevice(private_key=trial.private)])
    trial.box.up()
    trial.wait_until(lambda: trial.box.get().listen_port, "a port is shown")
    port = trial.box.get().listen_port
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version, start=False)
        trial.outward()
        initiation = peer.expect(INITIATION, why=f"over IPv{version}")
        expect(initiation.port == port, f"it sends from port {initiation.port} over IPv{version} and shows {port}")
        peer.box = (peer.box[0], port)
        peer.initiate()


@behaviour("1.12", "another port is taken at once: the old one is closed, sessions go on", seconds=2)
def port_change(trial: Trial) -> None:
    for number, version in enumerate(FAMILIES):
        peer = trial.peer(version=version, host=version)
        peer.box = (peer.box[0], PORT + number)
        session = peer.initiate()
        port = PORT + number + 1
        trial.box.set([SetDevice(listen_port=port)])
        expect(trial.box.get().listen_port == port, f"the port shown is {trial.box.get().listen_port} instead of {port}")
        expect(is_closed(trial, version, port - 1), f"the old port is still open over IPv{version}")
        trial.outward()
        came = peer.expect(TRANSPORT, why=f"after a change of port over IPv{version}")
        expect(session.open(came) and came.port == port, f"a packet came from port {came.port} instead of {port}")
        peer.box = (peer.box[0], port)
        trial.expect_inward(session, f"a packet to the new port over IPv{version}")


@behaviour("1.12", "outer datagrams have a UDP checksum, also over IPv4")
def udp_checksum(trial: Trial) -> None:
    sniffer = trial.sniffer("outer")
    for version in FAMILIES:
        peer = trial.peer(version=version, host=version)
        trial.outward()
        peer.respond(peer.expect(INITIATION)).receive()
        sums = checksums(sniffer)
        expect(sums, "no datagram was seen on the wire")
        expect(all(any(field) for field in sums), f"a datagram over IPv{version} has no checksum")


def checksums(sniffer: Sniffer) -> list[bytes]:
    """The checksum fields of the UDP datagrams that came in."""
    found = []
    for packet in sniffer.packets():
        start = 20 if packet[0] >> 4 == 4 else 40
        if packet[9 if start == 20 else 6] == 17:
            found.append(packet[start + 6 : start + 8])
    return found


@behaviour("1.12", "an endpoint may be link-local: its interface is kept with it, also when it is learnt", seconds=2)
def link_local_endpoint(trial: Trial) -> None:
    trial.start()
    theirs = link_local(trial.box.run(["ip", "-json", "-6", "addr", "show", "dev", "eth0", "scope", "link"]).stdout)
    ours = link_local(trial.tester.run(["ip", "-json", "-6", "addr", "show", "dev", "outer", "scope", "link"]).stdout)
    (here, here_index), (there, there_index) = ours, theirs
    mine, its = IPv6Address(f"{here}%{here_index}"), IPv6Address(f"{there}%{here_index}")
    peer = trial.peer(version=6)
    peer.move(mine)
    peer.box = sockaddr(its, PORT)
    trial.box.set([SetPeer(peer.public, endpoint=Endpoint(str(here), peer.address[1], there_index))])
    trial.outward()
    session = peer.respond(peer.expect(INITIATION, why="to a link-local endpoint"))
    session.receive("a packet to a link-local endpoint")
    peer.move(mine)
    session.send()
    time.sleep(0.1)
    trial.expect_outward(session, "a packet to a link-local endpoint that was learnt")
    shown = trial.known(peer).config.endpoint
    expect(shown is not None and (shown.host, shown.port) == (str(here), peer.address[1]), f"the endpoint shown is {shown}")


def link_local(said: str) -> tuple[IPv6Address, int]:
    """The address and the interface's index in the output of ``ip -json addr show``."""
    return next(
        (IPv6Address(address["local"]), link["ifindex"])
        for link in json.loads(said)
        for address in link.get("addr_info", ())
        if "local" in address
    )
