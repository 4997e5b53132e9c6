import fcntl
import hashlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytun

from tests.tun.conftest import ip, without_capability
from tests.tun.packets import Stream
from tun import Offloads, Tun, TunError, adopt_tun, open_tun
from tun.link import in_namespace_of
from tun.linux import TUNSETOFFLOAD, _kernel_version, _request_offloads, _takes_superpackets, _tcp_probe, open_device
from tun.offload import GSO_NONE, NEEDS_CSUM, VIRTIO_HEADER, ZERO_HEADER, Coalescer, Superpacket, Write, complete_checksum

pytestmark = pytest.mark.e2e

CAP_NET_ADMIN = 12
UDP_SEGMENT, UDP_GRO = 103, 104


def link(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ip("-j", "link", "show", name))[0]
    return found


def exists(name: str) -> bool:
    return name in [one["ifname"] for one in json.loads(ip("-j", "link", "show"))]


def persistent(name: str) -> None:
    tun = open_tun(name, mtu=1420)
    tun.persist()
    tun.close()


# Opening


@pytest.mark.usefixtures("namespace")
class TestOpening:
    def test_a_new_interface_is_down_and_has_the_mtu_and_a_queue_for_bursts(self) -> None:
        tun = open_tun("wgpy-a", mtu=1420)

        state = link("wgpy-a")

        assert (state["mtu"], state["txqlen"], "UP" in state["flags"]) == (1420, 1024, False)
        assert tun.offloads.tso
        tun.close()

    def test_its_descriptor_neither_blocks_nor_is_inherited(self) -> None:
        tun = open_tun("wgpy-a")

        assert not os.get_blocking(tun.fileno())
        assert not os.get_inheritable(tun.fileno())
        tun.close()

    def test_it_disappears_with_its_descriptor(self) -> None:
        tun = open_tun("wgpy-a")
        assert exists("wgpy-a")

        tun.close()

        assert not exists("wgpy-a")

    def test_a_persistent_one_stays_and_keeps_its_settings_when_opened_again(self) -> None:
        persistent("wgpy-a")
        ip("link", "set", "wgpy-a", "mtu", "1300", "up")

        tun = open_tun("wgpy-a", mtu=1420)

        assert (link("wgpy-a")["mtu"], "UP" in link("wgpy-a")["flags"]) == (1300, True)
        tun.close()
        assert exists("wgpy-a")

    def test_probing_for_superpackets_does_not_disturb_an_interface_that_is_up(self) -> None:
        persistent("wgpy-a")
        ip("address", "add", "10.9.0.1/24", "dev", "wgpy-a")
        ip("link", "set", "wgpy-a", "up")

        tun = open_tun("wgpy-a")

        assert tun.offloads.tcp_gro
        packet = bytearray(1500)
        while packet[0] >> 4 in (0, 6):  # an answer to the probe would be IPv4; IPv6 router solicitations may come
            try:
                tun.read([bytearray(10), packet])
            except BlockingIOError:
                break
        assert packet[0] >> 4 != 4
        tun.close()


@pytest.mark.usefixtures("namespace")
class TestErrorsOfOpening:
    def test_open_in_another_process(self) -> None:
        tun = open_tun("wgpy-a")

        with pytest.raises(TunError, match=r"wgpy-a is in use by another process: stop that one, or choose another name"):
            open_tun("wgpy-a")
        tun.close()

    def test_an_interface_of_another_kind(self) -> None:
        ip("link", "add", "wgpy-a", "type", "veth", "peer", "name", "wgpy-b")
        ip("tuntap", "add", "wgpy-c", "mode", "tap")
        for name in ("wgpy-a", "wgpy-c", "lo"):
            with pytest.raises(TunError, match=f"{name} exists and is not a TUN interface"):
                open_tun(name)
        assert exists("wgpy-a")

    def test_no_capability(self) -> None:
        def attempt() -> None:
            with pytest.raises(TunError, match="no permission to create wgpy-a: CAP_NET_ADMIN is missing"):
                open_tun("wgpy-a")

        without_capability(CAP_NET_ADMIN, attempt)
        assert not exists("wgpy-a")

    def test_no_device(self) -> None:
        for path in ("/no/such/net/tun", "/dev/null"):
            with pytest.raises(TunError, match=f"{path} is not there or not a TUN device: load the tun module"):
                open_device("wgpy-a", path=path)

    def test_persisting_a_deleted_interface(self) -> None:
        tun = open_tun("wgpy-a")
        ip("link", "delete", "wgpy-a")

        with pytest.raises(TunError, match="wgpy-a cannot be made persistent"):
            tun.persist()
        tun.close()

    def test_a_setting_that_the_kernel_refuses_leaves_nothing_behind(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for mtu in (10**6, 10**12, 1):
            with pytest.raises(TunError, match="wgpy-a cannot be set up"):
                open_tun("wgpy-a", mtu=mtu)
            assert not exists("wgpy-a")
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 16, "ä" * 8, "a/b", "a b", "a:b", "wg%d", "a\0b", "a\n"])
def test_a_name_that_cannot_be_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TunError, match="cannot name an interface") as caught:
        open_tun(name)
    assert "\n" not in str(caught.value)


# Adopting


@pytest.mark.usefixtures("namespace")
class TestAdopting:
    def test_a_descriptor_keeps_the_interface_alive(self) -> None:
        tun = open_tun("wgpy-a")

        adopted = adopt_tun(os.dup(tun.fileno()))
        tun.close()

        assert (adopted.name, adopted.offloads) == ("wgpy-a", tun.offloads)
        ip("link", "set", "wgpy-a", "up")
        assert adopted.write([ZERO_HEADER, Stream().packets()[0]]) == 10 + 140
        adopted.close()
        assert not exists("wgpy-a")

    def test_one_that_a_parent_process_opened(self) -> None:
        tun = open_tun("wgpy-a")
        program = "import sys, tun; t = tun.adopt_tun(int(sys.argv[1])); print(t.name, t.offloads.tso)"

        answer = subprocess.run(
            [sys.executable, "-c", program, str(tun.fileno())], pass_fds=[tun.fileno()], capture_output=True, text=True
        )

        assert answer.stdout == "wgpy-a True\n", answer.stderr
        tun.close()

    def test_what_is_no_tun_is_refused(self) -> None:
        reader, writer = os.pipe()
        for fd in (reader, 10_000):
            with pytest.raises(TunError, match=f"file descriptor {fd} is not an attached TUN interface"):
                adopt_tun(fd)
        os.close(reader)
        os.close(writer)

    def test_one_without_virtio_header_is_refused(self) -> None:
        device = pytun.TunTapDevice(name="wgpy-a", flags=pytun.IFF_TUN | pytun.IFF_NO_PI)
        with pytest.raises(TunError, match="wgpy-a was opened without"):
            adopt_tun(device.fileno())
        device.close()


# Offloads


def test_a_kernel_that_refuses_all_offloads_is_used_without() -> None:
    reader, writer = os.pipe()  # refuses TUNSETOFFLOAD

    assert _request_offloads(reader) == Offloads(tso=False, uso=False, tcp_gro=False, udp_gro=False)
    assert not _takes_superpackets(reader, _tcp_probe())

    os.close(reader)
    os.close(writer)


def test_an_error_other_than_the_interface_being_down_is_no_consent(namespace: None) -> None:
    tun = open_tun("wgpy-a")

    assert _takes_superpackets(tun.fileno(), _tcp_probe())
    assert not _takes_superpackets(tun.fileno(), VIRTIO_HEADER.pack(1, 1, 40, 0, 20, 16) + _tcp_probe()[10:])

    tun.close()


def test_kernel_versions_are_compared_as_numbers() -> None:
    assert _kernel_version("6.8.5-arch1-1") == (6, 8, 5)
    assert _kernel_version("6.18.44-fc-v657") > (6, 8, 5) > _kernel_version("6.8.0-45-generic")
    assert _kernel_version("6.9-rc1") > (6, 8, 5)


# Traffic: two namespaces, a TUN in each, and this process as the wire between them


class Wire:
    """Carries packets between two interfaces, by way of rows. Coalesces what it writes, or writes every packet alone.

    A packet written alone has a virtio header of zeros: the receiving kernel then verifies its checksums.
    """

    def __init__(self, a: Tun, b: Tun, coalesce: bool) -> None:
        self.ends = {a.fileno(): (a, b), b.fileno(): (b, a)}
        self.coalescer = Coalescer(tso=coalesce, uso=coalesce)
        self.superpackets_read: Counter[int] = Counter()
        self.superpackets_written: Counter[int] = Counter()
        self.half_done = 0
        self.largest_burst = 0
        self.rows = np.zeros((64, 1520), np.uint8)
        self.views = [row.data for row in self.rows]
        self.header = bytearray(10)
        self.packet = bytearray(65535)
        self.errors: Counter[str] = Counter()

    def run_until(self, done: threading.Event) -> None:
        with selectors.DefaultSelector() as selector:
            for fd in self.ends:
                selector.register(fd, selectors.EVENT_READ)
            while not done.is_set():
                for key, _ in selector.select(0.05):
                    self.carry(*self.ends[key.fd])

    def carry(self, source: Tun, target: Tun) -> None:
        for _ in range(64):
            try:
                size = source.read([self.header, self.packet]) - 10
            except BlockingIOError:
                return
            packet = memoryview(self.packet)[:size]
            flags, kind, _, _, start, offset = VIRTIO_HEADER.unpack(self.header)
            if kind == GSO_NONE:
                if flags & NEEDS_CSUM:
                    self.half_done += 1
                    complete_checksum(packet, start, offset)
                target.write([ZERO_HEADER, packet])
                continue
            self.superpackets_read[kind] += 1
            superpacket = Superpacket.parse(self.header, packet)
            first = 0
            while count := superpacket.fill(self.rows, first):
                first += count
                lengths = [superpacket.row_length] * count
                if first == superpacket.count:
                    lengths[-1] = superpacket.last_length
                self.write(target, lengths)

    def write(self, target: Tun, lengths: list[int]) -> None:
        writes: list[Write] = []
        self.coalescer.coalesce(self.rows, self.views, lengths, writes)
        for write in writes:
            self.superpackets_written[write[0][1]] += write[0][1] != GSO_NONE
            target.write(write)


@pytest.fixture
def tuns(namespace: None, elsewhere: int) -> Iterator[tuple[Tun, Tun, int]]:
    """10.9.0.1 and fd09::1 on an interface here, .2 and ::2 on one elsewhere."""
    here, there = open_tun("wgpy-a", mtu=1420), open_tun("wgpy-b", mtu=1420)
    ip("link", "set", "wgpy-b", "netns", str(elsewhere))
    for name, number, pid in (("wgpy-a", 1, None), ("wgpy-b", 2, elsewhere)):
        ip("address", "add", f"10.9.0.{number}/24", "dev", name, pid=pid)
        ip("address", "add", f"fd09::{number}/64", "dev", name, "nodad", pid=pid)
        ip("link", "set", name, "up", pid=pid)
        await_ipv6(f"fd09::{number}", pid)
    yield here, there, elsewhere
    here.close()
    there.close()


def await_ipv6(address: str, pid: int | None) -> None:
    """The kernel takes a moment to take packets to an address that it has been given."""
    deadline = time.monotonic() + 10
    while address not in ip("-6", "route", "show", "table", "local", "type", "local", pid=pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checksum_errors(pid: int) -> int:
    """TCP and UDP packets which the namespace of a process dropped for their checksums."""
    with open(f"/proc/{pid}/net/snmp") as v4, open(f"/proc/{pid}/net/snmp6") as v6:
        lines = [line.split() for line in v4]
        of_v4 = [
            int(value)
            for names, values in zip(lines[::2], lines[1::2], strict=True)
            for name, value in zip(names, values, strict=True)
            if name == "InCsumErrors"
        ]
        return sum(of_v4) + sum(int(line.split()[1]) for line in v6 if "InCsumErrors" in line)


@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "one by one"])
@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_tcp_crosses_as_superpackets_and_arrives_intact(tuns: tuple[Tun, Tun, int], address: str, coalesce: bool) -> None:
    here, there, pid = tuns
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = in_namespace_of(there.fileno(), lambda: socket.create_server((address, 5001), family=family))
    client = socket.socket(family)
    data = random.Random(1).randbytes(12_000_001)
    done = threading.Event()
    received = hashlib.sha256()

    def send() -> None:
        client.settimeout(20)
        client.connect((address, 5001))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    def receive() -> None:
        server.settimeout(20)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            while chunk := connection.recv(1 << 20):
                received.update(chunk)
        done.set()

    threads = [threading.Thread(target=send), threading.Thread(target=receive)]
    wire = Wire(here, there, coalesce)
    for thread in threads:
        thread.start()
    wire.run_until(done)
    for thread in threads:
        thread.join()
    client.close()
    server.close()

    assert received.digest() == hashlib.sha256(data).digest()
    assert wire.superpackets_read[1 if family == socket.AF_INET else 4] > 100
    assert wire.half_done > 0
    assert bool(+wire.superpackets_written) == coalesce
    assert checksum_errors(pid) == checksum_errors(os.getpid()) == 0


@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "one by one"])
@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
@pytest.mark.parametrize(("size", "total"), [(1200, 50_000), (17, 17 * 60 + 5), (1372, 1372 * 40)])
def test_udp_crosses_as_superpackets_and_arrives_intact(
    tuns: tuple[Tun, Tun, int], address: str, size: int, total: int, coalesce: bool
) -> None:
    here, there, pid = tuns
    if not here.offloads.uso:
        pytest.skip("this kernel makes no UDP superpackets")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiver = in_namespace_of(there.fileno(), lambda: socket.socket(family, socket.SOCK_DGRAM))
    receiver.bind((address, 5001))
    receiver.settimeout(5)
    sender = socket.socket(family, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    data = random.Random(2).randbytes(total)
    wire = Wire(here, there, coalesce)

    sender.sendto(data, (address, 5001))
    wire.carry(here, there)

    datagrams = [receiver.recv(65535) for _ in range(-(-total // size))]
    assert datagrams == [data[i : i + size] for i in range(0, total, size)]
    assert wire.superpackets_read[5] == 1
    assert wire.superpackets_written[5] == coalesce
    assert checksum_errors(pid) == 0
    sender.close()
    receiver.close()


def test_a_udp_superpacket_of_more_than_64_datagrams_is_taken(tuns: tuple[Tun, Tun, int]) -> None:
    """A burst of the core has up to 128 rows. The kernel's own limit of 64 is one of its GRO, not of what it accepts."""
    _, there, _ = tuns
    if not there.offloads.udp_gro:
        pytest.skip("this kernel takes no UDP superpackets")
    receiver = in_namespace_of(there.fileno(), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind(("10.9.0.2", 5001))
    receiver.settimeout(5)
    data = random.Random(3).randbytes(128 * 64)
    addresses = {"source": bytes([10, 9, 0, 1] * 4), "destination": bytes([10, 9, 0, 2] * 4)}
    stream = replace(Stream(is_tcp=False, payload=data, size=64, ports=(5002, 5001)), **addresses)  # type: ignore[arg-type]
    packets = stream.packets()
    rows = np.array([list(packet) for packet in packets], np.uint8)
    writes: list[Write] = []

    Coalescer(uso=True).coalesce(rows, [row.data for row in rows], [len(packet) for packet in packets], writes)
    (write,) = writes
    there.write(write)

    assert [receiver.recv(65535) for _ in packets] == [data[i : i + 64] for i in range(0, len(data), 64)]
    receiver.close()


def test_nothing_but_single_packets_is_read_without_offloads(tuns: tuple[Tun, Tun, int]) -> None:
    """So that it is the offloads, and not the kernel, which the tests above have seen."""
    here, there, _ = tuns
    fcntl.ioctl(here.fileno(), TUNSETOFFLOAD, 0)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    wire = Wire(here, there, False)

    sender.sendto(bytes(1000), ("10.9.0.2", 5001))
    wire.carry(here, there)

    assert not wire.superpackets_read
    sender.close()


def test_importing_offload_loads_no_device() -> None:
    """The pure core imports tun.offload: that must not need a TUN library, or a socket."""
    program = "import sys, tun.offload; print([name for name in ('pytun', 'tun.linux', 'tun.link') if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
