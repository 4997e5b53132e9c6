import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from controller.demo.capture import Conversation, Frame, Sighting, Verdict, judge, transport_messages, write_pcap
from controller.demo.topology import Address

NODE_1, NODE_2, NODE_3 = ip_address("10.77.0.1"), ip_address("10.77.0.2"), ip_address("10.77.0.3")
POD_1, POD_2 = ip_address("10.42.1.1"), ip_address("10.42.2.1")
NODE_1_V6, NODE_2_V6 = ip_address("fd77::1"), ip_address("fd77::2")
POD_1_V6, POD_2_V6 = ip_address("fd42::101"), ip_address("fd42::201")
MARKER = b"wgpy\xf0\xf1\xf2\xf3"

IPV4 = Conversation((POD_1, POD_2), (NODE_1, NODE_2), MARKER)
IPV6 = Conversation((POD_1_V6, POD_2_V6), (NODE_1_V6, NODE_2_V6), MARKER)


def frame(source: Address, destination: Address, payload: bytes, protocol: int = 17) -> Frame:
    """An Ethernet frame with an IP header (no checksum: nobody reads it), for the judge."""
    if source.version == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    else:
        header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
    ethertype = b"\x08\x00" if source.version == 4 else b"\x86\xdd"
    return Frame(0.0, "n1", b"\x02" * 12 + ethertype + header + source.packed + destination.packed + payload)


def udp(payload: bytes, port: int = 51820) -> bytes:
    return struct.pack(">HHHH", port, port, 8 + len(payload), 0) + payload


def transport_message(length: int = 128, type_: int = 4) -> bytes:
    return udp(bytes([type_, 0, 0, 0]) + b"\xab" * (length - 4))


def ping(conversation: Conversation, *, reply: bool = False) -> Frame:
    source, destination = conversation.pods[::-1] if reply else conversation.pods
    return frame(source, destination, b"\x08\x00" + b"\0" * 20 + conversation.marker * 5, protocol=1)


def verdict(*frames: Frame, of: Conversation = IPV4) -> Verdict:
    return judge(frames, [of])[0].verdict


@pytest.mark.parametrize("conversation", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_transport_messages_both_ways_are_encrypted(conversation: Conversation) -> None:
    one, two = conversation.nodes
    sightings = judge([frame(one, two, transport_message()), frame(two, one, transport_message())], [conversation])

    assert sightings == [Sighting(0, (1, 1))]
    assert sightings[0].verdict is Verdict.ENCRYPTED


@pytest.mark.parametrize("conversation", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_packets_of_the_pods_themselves_are_clear(conversation: Conversation) -> None:
    assert verdict(ping(conversation), ping(conversation, reply=True), of=conversation) is Verdict.CLEAR


def test_one_clear_packet_among_encrypted_ones_spoils_the_verdict() -> None:
    both_ways = [frame(NODE_1, NODE_2, transport_message()), frame(NODE_2, NODE_1, transport_message())] * 50

    assert verdict(*both_ways) is Verdict.ENCRYPTED
    assert verdict(*both_ways, ping(IPV4)) is Verdict.BOTH


def test_a_packet_in_another_encapsulation_is_clear_without_its_marker_too() -> None:
    inner = ping(IPV4).data[14:].replace(MARKER, b"\0" * len(MARKER))

    assert verdict(frame(NODE_1, NODE_2, inner, protocol=4)) is Verdict.CLEAR  # IPIP
    assert (
        verdict(frame(NODE_1, NODE_2, udp(b"\x08" + b"\0" * 7 + b"\x02" * 12 + b"\x08\x00" + inner, 4789))) is Verdict.CLEAR
    )  # VXLAN


def test_a_transport_message_that_is_not_encrypted_is_clear() -> None:
    naked = udp(b"\x04\0\0\0" + b"\0" * 12 + ping(IPV4).data[14:] + b"\0" * 16)

    assert verdict(frame(NODE_1, NODE_2, naked), frame(NODE_2, NODE_1, transport_message())) is Verdict.BOTH


def test_one_direction_alone_is_not_encrypted() -> None:
    assert verdict(frame(NODE_1, NODE_2, transport_message())) is Verdict.ONE_WAY


@pytest.mark.parametrize(
    "payload",
    [transport_message(type_=1), transport_message(type_=2), transport_message(32), udp(b""), udp(b"\x04\0\0\1" + b"\0" * 60)],
    ids=["initiation", "response", "keepalive", "empty", "reserved bytes set"],
)
def test_what_carries_no_packet_proves_nothing(payload: bytes) -> None:
    assert verdict(frame(NODE_1, NODE_2, payload), frame(NODE_2, NODE_1, payload)) is Verdict.NOTHING


def test_messages_between_other_nodes_prove_nothing() -> None:
    assert verdict(frame(NODE_1, NODE_3, transport_message()), frame(NODE_3, NODE_1, transport_message())) is Verdict.NOTHING


def test_a_marker_belongs_to_its_own_conversation() -> None:
    other = Conversation((POD_1, ip_address("10.42.3.1")), (NODE_1, NODE_3), b"wgpy\0\0\0\1")

    assert [sighting.clear for sighting in judge([ping(IPV4)], [other, IPV4])] == [0, 1]


def test_pods_of_one_node_are_not_credited_with_messages() -> None:
    at_home = Conversation((POD_1, ip_address("10.42.1.2")), (NODE_1, NODE_1), MARKER)

    assert verdict(frame(NODE_1, NODE_1, transport_message()), of=at_home) is Verdict.NOTHING


def test_truncated_frames_are_nothing() -> None:
    whole = frame(NODE_1_V6, NODE_2_V6, transport_message()).data
    four = frame(NODE_1, NODE_2, transport_message()).data

    assert all(transport_messages(whole[:length]) is None for length in range(14 + 40 + 8 + 32))
    assert all(transport_messages(four[:length]) is None for length in range(14 + 20 + 8 + 32))
    assert transport_messages(whole) == ((NODE_1_V6, NODE_2_V6), 1)


def test_ip_options_do_not_hide_a_transport_message() -> None:
    plain = frame(NODE_1, NODE_2, b"").data
    with_options = plain[:14] + b"\x46" + plain[15:] + b"\x01" * 4 + transport_message()

    assert transport_messages(with_options) == ((NODE_1, NODE_2), 1)


def test_messages_that_left_in_one_call_are_counted_each() -> None:
    """UDP_SEGMENT on a veth: one frame, many messages, the last of them shorter, and keepalives not worth counting."""

    def message(counter: int, length: int, receiver: int = 7) -> bytes:
        return struct.pack("<IIQ", 4, receiver, counter) + bytes(length - 16)

    def count(*messages: bytes) -> int:
        found = transport_messages(frame(NODE_1, NODE_2, udp(b"".join(messages))).data)
        return found.number if found else 0

    assert count(*(message(counter, 128) for counter in range(250, 260))) == 10
    assert count(message(0, 1452), message(1, 1452), message(2, 80)) == 3
    assert count(message(0, 128), message(1, 32)) == 1
    assert count(message(2**64 - 1, 128)) == 1
    assert count(message(5, 128), message(5, 128), message(7, 128)) == 1, "not the next counter: inside the first message"
    assert count(message(5, 128), message(6, 128, receiver=8)) == 1, "not the same receiver"


def test_a_capture_is_written_as_tcpdump_reads_it(tmp_path: Path) -> None:
    first = ping(IPV4)._replace(time=1_700_000_000.25)

    write_pcap(tmp_path / "frames.pcap", [first, ping(IPV6)])

    content = (tmp_path / "frames.pcap").read_bytes()
    assert content[:4] == b"\xd4\xc3\xb2\xa1"
    assert struct.unpack("<IIII", content[24:40]) == (1_700_000_000, 250_000, len(first.data), len(first.data))
    assert content[40 : 40 + len(first.data)] == first.data
    assert len(content) == 24 + 16 + len(first.data) + 16 + len(ping(IPV6).data)
