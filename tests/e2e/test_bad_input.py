"""Bad input gets one line that says what is wrong and what to do, an exit status that is not 0, and nothing is left behind."""

import os
import shutil
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from controller.demo.topology import Node
from tests.e2e.lab import PORT, WGPY, DataPlane, inside, processes_in, wait_for

SHORT_KEY = b64encode(bytes(31)).decode()
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
WITHOUT_TUN = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$0" "$@"']
STATUS_OF_MISUSE, STATUS_OF_FAILURE = 2, 1


def state(node: Node) -> str:
    commands = ["ip -br link", "ip -br addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
    return node.run(["sh", "-c", "; ".join(commands)]).stdout


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    before = state(node)
    yield
    assert processes_in(node) == {}
    assert list(node.wireguard_directory.iterdir()) == []
    assert state(node) == before


def refused(node: Node, argv: Sequence[str], status: int) -> str:
    """Run ``argv``, see that it ends with ``status`` and says one line, and give that."""
    done = node.run(argv, check=False)
    assert done.returncode == status, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nonsense", "wg1"], "wgpy: no such option: '--nonsense' (see: wgpy --help)"),
        (["wg1", "--nonsense"], "wgpy: no such option: '--nonsense' (see: wgpy --help)"),
        (["wg1", "wg2"], "nothing may follow the name of an interface: 'wg2'"),
        (["run", "wg1", "--nonsense"], "wgpy run: unrecognized arguments: --nonsense (see: wgpy run --help)"),
        (["run"], "the following arguments are required: IFNAME"),
        (["run", "wg1", "--metrics", "nonsense"], "'nonsense' is not a numeric address and a port"),
        (["run", "wg1", "wg2", "--metrics", "127.0.0.1:65536"], "'127.0.0.1:65536' is not a numeric address and a port"),
    ],
)
def test_unknown_options_and_words(node: Node, words: list[str], says: str) -> None:
    assert says in refused(node, [*WGPY, *words], STATUS_OF_MISUSE)


@pytest.mark.parametrize("name", ["sixteen-letters-", "with space", "with/slash", "with:colon", ".."])
@pytest.mark.parametrize("verb", [[], ["run"]], ids=["drop-in", "run"])
def test_a_name_no_interface_can_have(node: Node, verb: list[str], name: str) -> None:
    assert f"not the name of an interface: {name!r}" in refused(node, [*WGPY, *verb, name], STATUS_OF_FAILURE)


@pytest.mark.parametrize("verb", [[], ["-f"], ["run"], ["run", "--persist"]], ids=" ".join)
class TestWhatTheMachineLacks:
    def test_the_capability_to_make_interfaces(self, node: Node, verb: list[str]) -> None:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed: it is in the package util-linux")
        line = refused(node, [*WITHOUT_NET_ADMIN, *WGPY, *verb, "wg1"], STATUS_OF_FAILURE)

        assert "CAP_NET_ADMIN is missing" in line

    def test_the_tun_device(self, node: Node, verb: list[str]) -> None:
        line = refused(node, [*WITHOUT_TUN, *WGPY, *verb, "wg1"], STATUS_OF_FAILURE)

        assert "/dev/net/tun is not there" in line
        assert "load the tun module" in line

    def test_a_name_that_is_free(self, node: Node, verb: list[str]) -> None:
        line = refused(node, [*WGPY, *verb, "eth0"], STATUS_OF_FAILURE)

        assert "eth0 exists and is not a TUN interface" in line


# Ports in use ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken(node: Node) -> Iterator[int]:
    """A UDP port that somebody else has."""
    with inside(node, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("", PORT))
        yield PORT


@pytest.mark.parametrize("options", [[], ["--persist"]], ids=["", "persist"])
def test_a_state_file_whose_port_is_in_use(node: Node, taken: int, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "wg1.conf").write_text(f"[Interface]\nListenPort = {taken}\n")

    line = refused(node, [*WGPY, "run", "wg1", "--state", str(tmp_path), *options], STATUS_OF_FAILURE)

    assert f"UDP port {taken} cannot be bound: Address already in use" in line
    assert str(tmp_path / "wg1.conf") in line


def test_a_metrics_port_in_use(node: Node) -> None:
    with inside(node, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as other:
        other.bind(("0.0.0.0", 9586))
        other.listen()

        line = refused(node, [*WGPY, "run", "wg1", "--metrics", "0.0.0.0:9586", "--persist"], STATUS_OF_FAILURE)

    assert "metrics cannot be served on 0.0.0.0:9586" in line
    assert "address already in use" in line


def test_a_port_in_use_when_the_link_comes_up_can_be_changed_for_another(node: Node, taken: int) -> None:
    """The kernel would refuse ``ip link set up``. We can only log it, and take the next port we are told."""
    plane = DataPlane.start("wgpy", node, "wg1")
    plane.wait_until_ready()
    node.run([*WGPY, "set", "wg1", "listen-port", str(taken)])
    node.configure(links=["link set wg1 up"])
    wait_for(lambda: f"UDP port {taken} cannot be bound: Address already in use" in plane.log.read_text(), "it says so")

    node.run([*WGPY, "set", "wg1", "listen-port", str(taken + 1)])

    assert f":{taken + 1:04X} " in node.run(["cat", "/proc/net/udp"]).stdout
    plane.stop()


# A state directory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "line 1"),
        (f"[Interface]\nPrivateKey = {SHORT_KEY}\n", "line 2: PrivateKey: not a key: 32 bytes in base64 are needed"),
        ("[Interface]\nListenPort = 65536\n", "line 2: ListenPort"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/8\n", "PublicKey"),
    ],
)
def test_a_state_file_that_is_no_configuration(node: Node, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wg1.conf"
    path.write_text(text)

    line = refused(node, [*WGPY, "run", "wg1", "--state", str(tmp_path), "--persist"], STATUS_OF_FAILURE)

    assert f"{path} cannot be read" in line
    assert says in line
    assert line.endswith("mend or delete it")
    assert SHORT_KEY not in line
    assert path.read_text() == text


def test_a_state_directory_that_cannot_be_made(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    line = refused(node, [*WGPY, "run", "wg1", "--state", str(tmp_path / "file" / "state")], STATUS_OF_FAILURE)

    assert f"the state directory {tmp_path}/file/state cannot be made: Not a directory" in line


# Keys --------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("need_wg")
def test_a_key_of_31_bytes(node: Node, tmp_path: Path) -> None:
    plane = DataPlane.start("wgpy", node, "wg1")
    plane.wait_until_ready()
    key, conf = tmp_path / "key", tmp_path / "wg1.conf"
    key.write_text(SHORT_KEY)
    conf.write_text(f"[Interface]\nPrivateKey = {SHORT_KEY}\n")
    needed = "32 bytes in base64 are needed"

    for words in (["set", "wg1", "peer", SHORT_KEY], ["set", "wg1", "private-key", str(key)], ["setconf", "wg1", str(conf)]):
        assert needed in refused(node, [*WGPY, *words], STATUS_OF_FAILURE)
        refused_by_wg = node.run(["wg", *words], check=False)
        assert refused_by_wg.returncode == 1
        assert refused_by_wg.stderr.startswith("Key is not the correct length or format")
    piped = subprocess.run([*WGPY, "pubkey"], input=SHORT_KEY, capture_output=True, text=True, timeout=20)
    assert piped.returncode == STATUS_OF_FAILURE
    assert needed in piped.stderr

    assert plane.client.get().private_key == bytes(32)
    assert plane.client.get().peers == ()
    plane.stop()


def test_an_interface_that_nobody_serves(node: Node) -> None:
    for words in (["show", "wg9"], ["showconf", "wg9"], ["set", "wg9", "fwmark", "1"], ["setconf", "wg9", os.devnull]):
        assert "no interface 'wg9' here" in refused(node, [*WGPY, *words], STATUS_OF_FAILURE)
