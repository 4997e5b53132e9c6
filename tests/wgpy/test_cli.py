"""The command. It runs in this process where only its text matters, and as ``python -m wgpy`` where the process does.

What ``set`` and ``setconf`` send is compared with what ``wg`` sends for the same words.
"""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.interface import Interface
from wgpy import __version__, cli, uapi
from wgpy.client import SOCKET_DIRECTORY
from wgpy.config import NO_KEY, DeviceSnapshot, Endpoint, PeerConfig, PeerSnapshot, SetDevice, SetPeer
from wgpy.wgconf import format_key

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))
OTHER = bytes(range(100, 132))
KEY64, OTHER64 = format_key(KEY), format_key(OTHER)
PEER = f"[Peer]\nPublicKey = {KEY64}\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: exit status, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(words)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def standing_interface() -> Iterator[Interface]:
    try:
        SOCKET_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        interface = Interface(f"wgc{os.getpid()}"[:15], SOCKET_DIRECTORY)
    except PermissionError:
        pytest.skip(f"only root may write to {SOCKET_DIRECTORY}")
    with interface:
        yield interface


@pytest.fixture
def interface(standing_interface: Interface) -> Interface:
    """An interface where the command looks for it, as new."""
    standing_interface.snapshot = DeviceSnapshot()
    standing_interface.requests.clear()
    standing_interface.changes.clear()
    standing_interface.errno = 0
    return standing_interface


def process(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wgpy", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=60)


# --- help and mistakes -------------------------------------------------------------------------------------------------


def test_help_lists_every_command(run: Run) -> None:
    status, output, _ = run("--help")

    assert status == 0
    for name in [*cli.VERBS, *cli.COMMANDS]:
        (line,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 3
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_help(run: Run, verb: str) -> None:
    status, output, _ = run(verb, "--help")

    assert status == 0
    assert f"usage: wgpy {verb}" in output


def test_version_names_the_program(run: Run) -> None:
    assert run("--version") == (0, f"wgpy {__version__}\n", "")


def test_without_arguments_it_helps_and_fails(run: Run) -> None:
    status, output, errors = run()

    assert (status, output) == (2, "")
    assert errors.startswith("usage: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("wg0", "--frobnicate"), "no such option: '--frobnicate'"),
        (("--frobnicate", "wg0"), "no such option: '--frobnicate'"),
        (("-x",), "IFNAME"),
        (("shwo", "wg0"), "'shwo' is not a command"),
        (("run",), "IFNAME"),
        (("run", "--frobnicate", "wg0"), "--frobnicate"),
        (("run", "wg0", "--state"), "--state"),
        (("genkey", "now"), "now"),
        (("show", "wg0", "nonsense"), "no such field: 'nonsense'"),
        (("show", "interfaces", "peers"), "'peers'"),
        (("show", "wg0", "dump", "--output", "json"), "without --output"),
        (("show", "--output", "xml"), "xml"),
        (("setconf", "wg0"), "FILE"),
        (("set", "wg0"), "nothing to set"),
        (("set", "wg0", "nonsense"), "'nonsense' is not one of listen-port, fwmark, private-key, peer"),
        (("set", "wg0", "allowed-ips", "10.0.0.0/8"), "'allowed-ips' is not one of"),
        (("set", "wg0", "listen-port"), "'listen-port' needs a value after it"),
        (("set", "wg0", "peer", KEY64, "listen-port", "5"), "'listen-port' is not one of"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_answered_with_one_line_and_status_2(
    run: Run, words: tuple[str, ...], said: str
) -> None:
    status, output, errors = run(*words)

    assert (status, output) == (2, "")
    assert errors.count("\n") == 1
    assert errors.startswith("wgpy")
    assert said in errors
    assert "--help)" in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "nosuch0"), "wgpy show: no interface 'nosuch0' here"),
        (("show", "a/b"), "wgpy show: not the name of an interface: 'a/b'"),
        (("sixteen-letters-",), "wgpy: not the name of an interface"),
        (("-f", "a b"), "wgpy: not the name of an interface"),
        (("run", "wg0", "a b"), "wgpy run: not the name of an interface"),
        (("showconf", "nosuch0"), "wgpy showconf: no interface"),
        (("setconf", "nosuch0", "/nonexistent/file"), "wgpy setconf: /nonexistent/file: No such file or directory"),
        (("setconf", "nosuch0", "/"), "wgpy setconf: /: Is a directory"),
        (("set", "nosuch0", "listen-port", "5"), "wgpy set: no interface"),
        (("set", "nosuch0", "listen-port", "65536"), "wgpy set: listen-port: not a number from 0 to 65535"),
        (("set", "nosuch0", "fwmark", "0x1g"), "wgpy set: fwmark: not a mark"),
        (("set", "nosuch0", "private-key", "/nonexistent/file"), "wgpy set: /nonexistent/file: No such file"),
        (("set", "nosuch0", "peer", "AAAA"), "wgpy set: peer: not a key"),
        (("set", "nosuch0", "peer", KEY64, "endpoint", "192.0.2.1"), "wgpy set: endpoint: not HOST:PORT"),
        (("set", "nosuch0", "peer", KEY64, "allowed-ips", "10.0.0.0/33"), "wgpy set: allowed-ips"),
        (("set", "nosuch0", "peer", KEY64, "allowed-ips", "+10.0.0.0/8,11.0.0.0/8"), "either all or none"),
        (("set", "nosuch0", "peer", KEY64, "persistent-keepalive", "65536"), "wgpy set: persistent-keepalive"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_status_1(run: Run, words: tuple[str, ...], said: str) -> None:
    status, output, errors = run(*words)

    assert (status, output) == (1, "")
    assert errors.count("\n") == 1
    assert said in errors


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("docter", "did you mean wgpy doctor? To take it away: ip link delete docter\n"),
        ("version", "did you mean wgpy --version?"),
        ("wg", ""),
        ("demo1", ""),
    ],
)
def test_a_misspelt_command_becomes_an_interface_but_not_in_silence(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    started: list[str] = []

    def start(interface: str, foreground: bool) -> int:
        started.append(interface)
        return 0

    monkeypatch.setattr("wgpy.daemon.privileges.restrict", lambda: None)
    monkeypatch.setattr("wgpy.daemon.run.drop_in", start)

    status, _, errors = run(name)

    assert status == 0 and started == [name]
    assert hint in errors and bool(hint) == bool(errors)


# --- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_made_from_fresh_randomness_and_clamped(run: Run) -> None:
    from wgpy.wgconf import parse_key

    keys = {parse_key(run("genkey")[1].strip()) for _ in range(8)}

    assert len(keys) == 8
    assert all(key[0] & 7 == 0 and key[31] & 0xC0 == 0x40 for key in keys)
    assert len({run("genpsk")[1] for _ in range(8)}) == 8


def test_the_public_key_is_that_of_the_vectors() -> None:
    """reference: private key 00 02 03 ... 1f 60 of the handshake vectors."""
    private = bytes.fromhex("0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60")
    public = bytes.fromhex("07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c")

    result = process("pubkey", stdin=f"{format_key(private)}\n")

    assert (result.returncode, result.stdout, result.stderr) == (0, f"{format_key(public)}\n", "")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_the_wrong_length_is_one_line_that_does_not_repeat_it(length: int) -> None:
    from base64 import b64encode

    text = b64encode(os.urandom(length)).decode()

    result = process("pubkey", stdin=text)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("wgpy pubkey: standard input: not a key: 32 bytes in base64 are needed")
    assert result.stderr.count("\n") == 1
    assert not text or text not in result.stderr


def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    for mode, warned in ((0o644, True), (0o600, False)):
        path = tmp_path / f"key{mode:o}"
        path.touch(mode=0o600)
        path.chmod(mode)
        with path.open("w") as file:
            command = [sys.executable, "-m", "wgpy", "genkey"]
            result = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=True)

        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert ("umask 077" in result.stderr) == warned


# --- show --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(interface: Interface) -> Interface:
    peer = PeerConfig(OTHER, endpoint=Endpoint("fe80::1%lo", 5), allowed_ips=(ip_network("10.0.0.0/8"),))
    interface.snapshot = DeviceSnapshot(listen_port=51820, peers=(PeerSnapshot(peer),))
    return interface


def test_show_is_for_people(run: Run, shown: Interface) -> None:
    assert run("show", shown.name) == (
        0,
        f"interface: {shown.name}\n  listening port: 51820\n\n"
        f"peer: {OTHER64}\n  endpoint: [fe80::1%lo]:5\n  allowed ips: 10.0.0.0/8\n",
        "",
    )


def test_show_of_a_field_is_for_scripts(run: Run, shown: Interface) -> None:
    assert run("show", shown.name, "peers") == (0, f"{OTHER64}\n", "")
    assert run("show", shown.name, "endpoints") == (0, f"{OTHER64}\t[fe80::1%lo]:5\n", "")


def test_show_all_names_the_interface_on_each_line(run: Run, shown: Interface) -> None:
    assert f"{shown.name}\t{OTHER64}\t10.0.0.0/8\n" in run("show", "all", "allowed-ips")[1]
    assert f"{shown.name}\n" in run("show", "interfaces")[1]
    assert f"interface: {shown.name}\n" in run("show")[1]


def test_show_in_json_is_an_object_of_interfaces(run: Run, shown: Interface) -> None:
    status, output, _ = run("show", shown.name, "--output", "json")

    assert status == 0
    peer = {"endpoint": "[fe80::1%lo]:5", "allowedIps": ["10.0.0.0/8"]}
    assert json.loads(output) == {shown.name: {"listenPort": 51820, "peers": {OTHER64: peer}}}


def test_colours_and_keys_follow_the_environment(run: Run, interface: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    private = bytes([0, *range(1, 31), 0x5F])
    interface.snapshot = DeviceSnapshot(private)

    monkeypatch.setenv("WG_COLOR_MODE", "always")
    assert "\x1b[" in run("show", interface.name)[1]
    monkeypatch.setenv("WG_COLOR_MODE", "never")
    assert "\x1b[" not in run("show", interface.name)[1]
    assert format_key(private) not in run("show", interface.name)[1]
    monkeypatch.setenv("WG_HIDE_KEYS", "never")
    assert format_key(private) in run("show", interface.name)[1]


def test_a_reader_that_has_seen_enough_is_no_error(interface: Interface) -> None:
    peers = tuple(PeerSnapshot(PeerConfig(os.urandom(32))) for _ in range(3000))
    interface.snapshot = DeviceSnapshot(peers=peers)

    command = f"{sys.executable} -m wgpy show {interface.name} dump | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60)

    assert (result.stdout, result.stderr) == ("(none)\t(none)\t0\toff\n", "")


def test_showconf_is_read_back_by_setconf(run: Run, interface: Interface, tmp_path: Path) -> None:
    peer = PeerConfig(OTHER, KEY, Endpoint("fe80::1%lo", 5), 25, (ip_network("10.0.0.0/8"),))
    interface.snapshot = DeviceSnapshot(bytes([0, *range(1, 31), 0x5F]), 51820, 0x20, (PeerSnapshot(peer),))
    file = tmp_path / "wg0.conf"

    status, output, _ = run("showconf", interface.name)
    file.write_text(output)

    assert status == 0
    assert run("setconf", interface.name, str(file))[0] == 0
    device, changed = interface.changes
    assert device == SetDevice(interface.snapshot.private_key, 51820, 0x20, replace_peers=True)
    assert isinstance(changed, SetPeer)
    assert changed.endpoint is not None
    assert (changed.endpoint.host, changed.endpoint.scope_id) == ("fe80::1", 1)


# --- set and the files: wg is the judge --------------------------------------------------------------------------------


@pytest.fixture
def told(interface: Interface, run: Run) -> Callable[..., str]:
    """What one of the two programs tells the interface: ``told("wg", "set", ...)``. NAME stands for the interface."""

    def told(program: str, *words: str) -> str:
        interface.requests.clear()
        words = tuple(interface.name if word == "NAME" else word for word in words)
        if program == "wgpy":
            assert run(*words) == (0, "", "")
        else:
            subprocess.run(["wg", *words], check=True, capture_output=True, timeout=10)
        (request,) = interface.requests
        return request

    return told


needs_wg = pytest.mark.skipif(shutil.which("wg") is None, reason="wg is not installed: run make setup")


@needs_wg
@pytest.mark.parametrize(
    "words",
    [
        "listen-port 5 fwmark 0x20",
        "fwmark off listen-port 0",
        "private-key FILE",
        "private-key /dev/null",
        f"peer {KEY64}",
        f"peer {KEY64} remove",
        f"peer {KEY64} preshared-key FILE endpoint 192.0.2.1:5 persistent-keepalive 25 allowed-ips 10.0.0.0/8,fd00::1",
        f"peer {KEY64} preshared-key /dev/null persistent-keepalive off allowed-ips",
        f"peer {KEY64} endpoint [2001:db8::1]:5 peer {OTHER64} endpoint localhost:6",
        f"listen-port 5 peer {KEY64} remove peer {OTHER64} allowed-ips 0.0.0.0/0",
    ],
)
def test_set_tells_the_interface_what_wg_tells_it(told: Callable[..., str], tmp_path: Path, words: str) -> None:
    file = tmp_path / "key"
    file.write_text(f"{OTHER64}\n")
    arguments = ["" if word == "EMPTY" else str(file) if word == "FILE" else word for word in words.split()]
    if arguments[-1] == "allowed-ips":
        arguments.append("")  # all of them removed

    assert told("wgpy", "set", "NAME", *arguments) == told("wg", "set", "NAME", *arguments)


def test_set_moves_single_allowed_ips(told: Callable[..., str]) -> None:
    request = told("wgpy", "set", "NAME", "peer", KEY64, "allowed-ips", "+10.0.0.0/8,-fd00::/64", "allowed-ips", "-10.1.0.0/16")

    assert uapi.parse_set(request) == [
        SetPeer(
            KEY,
            allowed_ips=(ip_network("10.0.0.0/8"),),
            removed_allowed_ips=(ip_network("fd00::/64"), ip_network("10.1.0.0/16")),
        )
    ]


FILES = [
    "",
    "[Interface]\n",
    f"[Interface]\nPrivateKey = {KEY64}\nListenPort = 5 # five\nFwMark = 0x20\n",
    PEER,
    f"{PEER}AllowedIPs = 10.0.0.1, fd00::/64\nAllowedIPs = 1.2.3.4/32\nEndpoint = localhost:5\nPersistentKeepalive = off\n",
    f"{PEER}PresharedKey = {OTHER64}\n[Interface]\nListenPort = 5\n[Peer]\nPublicKey = {OTHER64}\nPersistentKeepalive = 25\n",
]


@needs_wg
@pytest.mark.parametrize("text", FILES)
def test_addconf_tells_the_interface_what_wg_tells_it(told: Callable[..., str], tmp_path: Path, text: str) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(text)

    ours = uapi.parse_set(told("wgpy", "addconf", "NAME", str(file)))

    assert ours == uapi.parse_set(told("wg", "addconf", "NAME", str(file)))


@needs_wg
@pytest.mark.parametrize("text", FILES)
def test_setconf_makes_of_an_interface_what_wg_makes_of_it(told: Callable[..., str], tmp_path: Path, text: str) -> None:
    """Ours also clears what is clear already in a peer that is made anew; the rest is the same."""
    file = tmp_path / "wg0.conf"
    file.write_text(text)

    def cleared(request: str) -> list[object]:
        return [
            change
            if isinstance(change, SetDevice)
            else SetPeer(
                change.public_key,
                preshared_key=change.preshared_key or NO_KEY,
                endpoint=change.endpoint,
                persistent_keepalive=change.persistent_keepalive or 0,
                replace_allowed_ips=change.replace_allowed_ips,
                allowed_ips=change.allowed_ips,
            )
            for change in uapi.parse_set(request)
        ]

    assert cleared(told("wgpy", "setconf", "NAME", str(file))) == cleared(told("wg", "setconf", "NAME", str(file)))


def test_syncconf_tells_only_what_differs(run: Run, interface: Interface, tmp_path: Path) -> None:
    right = PeerConfig(KEY, endpoint=Endpoint("192.0.2.1", 5), allowed_ips=(ip_network("10.0.0.0/8"),))
    interface.snapshot = DeviceSnapshot(listen_port=5, peers=(PeerSnapshot(right), PeerSnapshot(PeerConfig(OTHER))))
    file = tmp_path / "wg0.conf"
    file.write_text(f"[Interface]\nFwMark = 7\n{PEER}AllowedIPs = 10.0.0.0/8\n")

    assert run("syncconf", interface.name, str(file)) == (0, "", "")

    assert interface.changes == [SetDevice(fwmark=7), SetPeer(OTHER, remove=True)]


def test_a_bad_file_is_named_with_its_line_and_changes_nothing(run: Run, interface: Interface, tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text("[Interface]\nListenPort = 5\nAddress = 10.0.0.1/24\n")

    for verb in ("setconf", "addconf", "syncconf"):
        status, _, errors = run(verb, interface.name, str(file))

        assert status == 1
        assert errors.startswith(f"wgpy {verb}: {file}: line 3: 'Address' is a key of wg-quick")
        assert errors.count("\n") == 1
    assert interface.requests == []


def test_a_file_that_is_no_text_is_one_line(run: Run, interface: Interface, tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(b"\xff\xfe\x00")

    assert run("setconf", interface.name, str(file)) == (1, "", f"wgpy setconf: {file}: not a text file\n")


def test_a_host_nobody_knows_is_one_line(run: Run, interface: Interface, tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(f"{PEER}Endpoint = no-such-host.invalid:5\n")

    status, _, errors = run("setconf", interface.name, str(file))

    assert status == 1
    assert "line 3: Endpoint: no address for 'no-such-host.invalid'" in errors
    assert errors.count("\n") == 1


def test_a_refusal_of_the_interface_is_one_line(run: Run, interface: Interface) -> None:
    interface.errno = 98

    status, _, errors = run("set", interface.name, "listen-port", "5")

    assert status == 1
    assert errors == f"wgpy set: interface '{interface.name}' refused to be changed: Address already in use\n"


# --- verbs of others ---------------------------------------------------------------------------------------------------


def installed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Let one entry point, ``agent``, be installed."""
    found = EntryPoints((EntryPoint("agent", value, "wgpy.commands"),))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **selection: found.select(**selection))


def test_a_command_of_an_extra_gets_the_rest_of_the_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "builtins:len")  # which returns how much it was given

    assert run("agent", "--node", "a") == (2, "", "")


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package.at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed(monkeypatch, "needs_more:main [agent]")

    status, _, errors = run("agent")

    assert status == 1
    pip = f"{shlex.quote(sys.executable)} -m pip"
    assert errors == f"wgpy agent: needs the extra 'agent' (no_such_package is missing): {pip} install 'wgpy[agent]'\n"


def test_a_command_that_is_not_installed_says_how_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "builtins:len")

    status, _, errors = run("demo")

    assert status == 1
    assert errors == "wgpy demo: not installed here: run make setup in a checkout, or pip install 'wgpy[agent]'\n"


def test_the_command_starts_without_loading_what_it_may_not_need() -> None:
    program = "import sys, wgpy.cli; print(*sorted(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()

    heavy = {"numpy", "cryptography", "nacl", "uvloop", "asyncio", "kubernetes", "pyroute2", "rich", "yaml", "importlib.metadata"}
    assert heavy.isdisjoint(loaded)
    assert not [name for name in loaded if name.split(".")[0] in ("controller", "tun", "noise")]


@pytest.mark.parametrize("text", ["[fd00::1]:9586", "fd00::1:9586"])
def test_an_ipv6_address_to_listen_at_may_stand_without_brackets(text: str) -> None:
    """As Kubernetes puts it into a command line."""
    assert cli._listen_address(text) == "[fd00::1]:9586"
