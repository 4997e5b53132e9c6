"""The data planes that are compared, and how each is started at both ends of a tunnel.

A :class:`Plane` stands for a make of tunnel: the WireGuards in userspace (wgpy among them), the kernel's, OpenVPN, IPsec,
and none at all. ``benchmarks.lab.lay`` leads it through these steps, each at both ends before the next: ``enrol`` (make
this end's secret, say what the other end must know), ``start`` (the process), ``is_ready``, then the lab's own addresses
and routes by ``link`` and ``way``, and ``connect`` (make the two speak). Everything a plane writes goes into the node's
directory, every process runs in the node's namespaces.

All are set up as their own manuals advise for speed, none is tuned beyond: one tunnel, ChaCha20-Poly1305 where there is a
choice, the same MTU inside, no compression, socket buffers as large as wgpy's where they can be asked for.
"""

from __future__ import annotations

import base64
import os
import platform
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path

from benchmarks.lab import End, LabError
from noise.crypto import clamp, public_key
from wgpy.client import Client, ClientError
from wgpy.config import Endpoint, SetDevice, SetPeer

CACHE = Path(__file__).parent.parent / ".cache" / "bin"
"""Where ``make setup`` and ``make setup-bench`` put what they build."""
PORT = 51820
COMMAND_SECONDS = 10.0
SETUP = "run make setup-bench"
KEEP_PRIVILEGES = ("-f", "--disable-drop-privileges")
"""Options of boringtun and its kin: without a login (in a container) they know no user to become, and end."""
PLUGIN = "/usr/lib/ipsec/plugins/libstrongswan-{}.so"
SOCKET_BUFFER = 7 << 20
"""Bytes: what the WireGuards ask for. Those that cannot force it get what net.core.rmem_max and wmem_max allow."""


class Plane(ABC):
    """A data plane. ``protocol``: two planes understand each other if theirs is the same."""

    name: str
    protocol: str
    interface = "wg0"
    """By which the pods' packets leave the node."""
    greatest_mtu = 65535
    """Bytes: the largest packet that it carries."""

    @property
    def home(self) -> str:
        """The interface that has the node's own address inside the tunnel."""
        return self.interface

    @abstractmethod
    def version(self) -> str:
        """What exactly is measured, for the report."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here and what to do about it, in one line; None if it can."""

    def enrol(self, end: End) -> str:
        """Make the secret of this end, and give what the other end must know of it."""
        return ""

    @abstractmethod
    def start(self, end: End, other: End) -> None:
        """Start the processes of this end. They need not be ready."""

    def is_ready(self, end: End) -> bool:
        """Whether the interface is there and its process leaves it alone from now on."""
        return end.node.run(["ip", "link", "show", "dev", self.interface], check=False).returncode == 0

    @abstractmethod
    def connect(self, end: End, other: End) -> None:
        """Let this end know the other. Both are ready; side 1 comes last."""

    def link(self, end: End) -> list[str]:
        """The ``ip`` commands that bring up the interface."""
        return [f"link set {self.interface} mtu {end.mtu} up"]

    def way(self, other: End, version: int) -> str:
        """The route to the other end's block of IP ``version``, as ``ip route`` wants it."""
        return f"dev {self.interface}"


class Veth(Plane):
    """No data plane: the pods' packets go over the underlay as they are. The ceiling of all the others."""

    name = "veth"
    protocol = "clear"
    interface = "eth0"
    home = "lo"

    def version(self) -> str:
        return f"Linux {platform.release()}, no tunnel"

    def missing(self) -> str | None:
        return None

    def start(self, end: End, other: End) -> None:
        return

    def connect(self, end: End, other: End) -> None:
        return

    def link(self, end: End) -> list[str]:
        return []

    def way(self, other: End, version: int) -> str:
        return f"via {other.node.address(version)} dev {self.interface}"


# WireGuard ------------------------------------------------------------------------------------------------------------


class WireGuard(Plane):
    """What all of them have in common: keys, and peers."""

    protocol = "wireguard"

    def enrol(self, end: End) -> str:
        private = clamp(os.urandom(32))
        self._key_file(end).write_bytes(base64.b64encode(private))
        return base64.b64encode(public_key(private)).decode()

    @staticmethod
    def _key_file(end: End) -> Path:
        return end.directory / "private-key"


class Userspace(WireGuard):
    """A WireGuard in a process of its own, with the usual command line and UAPI. Its log is for errors only."""

    def __init__(
        self,
        name: str,
        *commands: str,
        options: Sequence[str] = ("-f",),
        env: Mapping[str, str] | None = None,
        greatest_mtu: int = Plane.greatest_mtu,
    ) -> None:
        """``commands`` are the names by which the program may be installed."""
        self.name = name
        self.commands = commands
        self.options = options
        self.env = {"LOG_LEVEL": "error", **(env or {})}
        self.greatest_mtu = greatest_mtu

    def command(self) -> list[str]:
        """What runs it, without options and interface."""
        return [_program(*self.commands)]

    def version(self) -> str:
        return _first_line([*self.command(), "--version"])

    def missing(self) -> str | None:
        return None if _find(*self.commands) else f"{self.name} is not installed: {SETUP}"

    def start(self, end: End, other: End) -> None:
        end.start([*self.command(), *self.options, self.interface], self.env)

    def is_ready(self, end: End) -> bool:
        try:
            self._client(end).get()
        except ClientError:
            return False
        return True

    def connect(self, end: End, other: End) -> None:
        device = SetDevice(base64.b64decode(self._key_file(end).read_bytes()), PORT)
        endpoint = Endpoint(str(other.outer_address), PORT)
        try:
            self._client(end).set([device, SetPeer(base64.b64decode(other.public), endpoint=endpoint, allowed_ips=other.blocks)])
        except ClientError as error:
            raise LabError(f"{self.name} on {end.node.key}: {error}") from error

    def _client(self, end: End) -> Client:
        return Client(self.interface, directory=end.node.wireguard_directory)


class WireguardGo(Userspace):
    """Its ``--version`` is older than itself: the module's version stands in the program, among what Go notes there."""

    def version(self) -> str:
        if found := re.search(rb"\tgolang\.zx2c4\.com/wireguard\t(v[^\t\n]+)", Path(_program(*self.commands)).read_bytes()):
            return f"wireguard-go {found[1].decode()}"
        return super().version()


class Wgpy(Userspace):
    """This checkout. ``without`` are the offloads it is to do without, as on kernels that have none (WGPY_WITHOUT)."""

    def __init__(self, name: str = "wgpy", without: str = "") -> None:
        super().__init__(name, env={"WGPY_WITHOUT": without} if without else {})
        self.without = without

    def command(self) -> list[str]:
        return [sys.executable, "-m", "wgpy"]

    def version(self) -> str:
        libraries = ", ".join(f"{library} {version_of(library)}" for library in ("cryptography", "numpy"))
        lacking = f", without {self.without}" if self.without else ""
        return f"wgpy {version_of('wgpy')}, Python {platform.python_version()}, {libraries}{lacking}"

    def missing(self) -> str | None:
        return None


class Kernel(WireGuard):
    """The kernel's own. Its work is nobody's CPU time: softirqs and kernel threads do it."""

    name = "kernel"

    def version(self) -> str:
        return f"Linux {platform.release()}, its own WireGuard"

    def missing(self) -> str | None:
        if _find("wg") is None:
            return "wg is not installed: run make setup"
        # The namespace is gone with the command, and the interface with it.
        probe = ["unshare", "--net", "ip", "link", "add", self.interface, "type", "wireguard"]
        if _succeeds(probe):
            return None
        return "this kernel has no WireGuard: load its module, or run the benchmarks with --kernel-vm"

    def start(self, end: End, other: End) -> None:
        end.node.configure(links=[f"link add {self.interface} type wireguard"])

    def connect(self, end: End, other: End) -> None:
        end.node.run(
            [
                *("wg", "set", self.interface, "listen-port", str(PORT), "private-key", str(self._key_file(end))),
                *("peer", other.public, "endpoint", str(Endpoint(str(other.outer_address), PORT))),
                *("allowed-ips", ",".join(map(str, other.blocks))),
            ]
        )


# Others ---------------------------------------------------------------------------------------------------------------


class OpenVpn(Plane):
    """OpenVPN in its point-to-point mode over UDP, its data channel in userspace (no DCO).

    Each end has a certificate of its own making and knows the other's by its fingerprint.
    """

    name = "openvpn"
    protocol = "openvpn"

    def version(self) -> str:
        return " ".join(_first_line([_program("openvpn"), "--version"]).split()[:2]) + ", ChaCha20-Poly1305, without DCO"

    def missing(self) -> str | None:
        absent = [command for command in ("openvpn", "openssl") if _find(command) is None]
        return f"{' and '.join(absent)} not installed: {SETUP}" if absent else None

    def enrol(self, end: End) -> str:
        """Make key and certificate. The other end is told the certificate's SHA-256 fingerprint."""
        files = {name: str(end.directory / f"{name}.pem") for name in ("key", "certificate")}
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
        end.node.run([*make, "-subj", f"/CN={end.node.key}", "-keyout", files["key"], "-out", files["certificate"]])
        said = end.node.run(["openssl", "x509", "-in", files["certificate"], "-noout", "-fingerprint", "-sha256"]).stdout
        return said.partition("=")[2].strip()

    def start(self, end: End, other: End) -> None:
        config = end.directory / "openvpn.conf"
        config.write_text(
            f"""\
dev {self.interface}
dev-type tun
disable-dco
proto udp{end.shape.outer}
local {end.outer_address}
port {PORT}
remote {other.outer_address} {PORT}
{"tls-client" if end.side else "tls-server"}
{"" if end.side else "dh none"}
key {end.directory}/key.pem
cert {end.directory}/certificate.pem
peer-fingerprint "{other.public}"
data-ciphers CHACHA20-POLY1305
# The interface has the right MTU: packets need no rewriting of TCP's, and no fragments of OpenVPN's own.
tun-mtu {end.mtu}
mssfix 0
allow-compression no
sndbuf {SOCKET_BUFFER}
rcvbuf {SOCKET_BUFFER}
txqueuelen 1000
fast-io
verb 1
"""
        )
        end.start([_program("openvpn"), "--config", str(config)])

    def connect(self, end: End, other: End) -> None:
        return  # it speaks to the other end of its own accord


class IPsec(Plane):
    """strongSwan with ESP in userspace (its plugin kernel-libipsec), always in UDP, between two tunnel policies.

    The plugin's interface is called ipsec0; what is routed there and fits the policies is sealed. It lays routes of its own
    beside the lab's, and wants an address inside the tunnel for them before it connects. Each end has its own charon with
    its own socket and configuration; nothing in /etc is read.
    """

    name = "ipsec"
    protocol = "ipsec"
    interface = "ipsec0"
    greatest_mtu = 1400  # of larger ones the plugin reads so much, whatever the interface's MTU (TUN_DEFAULT_MTU)

    def version(self) -> str:
        said = _run([_program("swanctl"), "--help"])  # --version would ask a running charon for its own
        found = re.search(r"strongSwan \S+", said.stdout + said.stderr)
        name = found[0] if found else "strongSwan"
        return f"{name}, kernel-libipsec (ESP in userspace), ChaCha20-Poly1305, MTU {self.greatest_mtu}"

    def missing(self) -> str | None:
        absent = [command for command in ("charon-systemd", "swanctl") if _find(command) is None]
        absent += [plugin for plugin in ("kernel-libipsec", "openssl") if not Path(PLUGIN.format(plugin)).exists()]
        return f"of strongSwan, {' and '.join(absent)} not installed: {SETUP}" if absent else None

    def enrol(self, end: End) -> str:
        """Half of the shared secret."""
        return os.urandom(16).hex()

    def start(self, end: End, other: End) -> None:
        config = end.directory / "strongswan.conf"
        config.write_text(
            f"""\
charon-systemd {{
    load = random nonce openssl kdf hmac kernel-libipsec kernel-netlink socket-default vici
    plugins {{
        vici {{
            socket = {_vici(end)}
        }}
    }}
    filelog {{
        stderr {{
            default = 1
        }}
    }}
    journal {{
        default = -1
    }}
}}
"""
        )
        end.start([_program("charon-systemd")], {"STRONGSWAN_CONF": str(config)})

    def is_ready(self, end: End) -> bool:
        return super().is_ready(end) and _swanctl(end, "--stats", check=False)

    def connect(self, end: End, other: End) -> None:
        config = end.directory / "swanctl.conf"
        config.write_text(
            f"""\
connections {{
    nodes {{
        version = 2
        local_addrs = {end.outer_address}
        remote_addrs = {other.outer_address}
        mobike = no
        proposals = chacha20poly1305-prfsha256-x25519
        local {{
            auth = psk
        }}
        remote {{
            auth = psk
        }}
        children {{
            pods {{
                local_ts = {",".join(map(str, end.blocks))}
                remote_ts = {",".join(map(str, other.blocks))}
                esp_proposals = chacha20poly1305
            }}
        }}
    }}
}}
secrets {{
    ike {{
        secret = 0x{"".join(sorted((end.public, other.public)))}
    }}
}}
"""
        )
        _swanctl(end, "--load-all", "--file", str(config))
        if end.side:
            _swanctl(end, "--initiate", "--child", "pods", "--timeout", f"{COMMAND_SECONDS:.0f}")


def _vici(end: End) -> str:
    return f"unix://{end.directory}/charon.vici"


def _swanctl(end: End, *arguments: str, check: bool = True) -> bool:
    """Whether it went well. With ``check``, raises TopologyError if not."""
    return end.node.run([_program("swanctl"), *arguments, "--uri", _vici(end)], check=check).returncode == 0


# What is installed ----------------------------------------------------------------------------------------------------


def planes() -> dict[str, Plane]:
    """All that are known, by name, whether they are installed or not. The first is the ceiling, wgpy the last."""
    known = [
        Veth(),
        Kernel(),
        WireguardGo("wireguard-go", "wireguard-go", "wireguard"),
        # Its buffers for packets have 4096 bytes.
        Userspace("gotatun", "gotatun", options=(*KEEP_PRIVILEGES, "--verbosity", "error"), greatest_mtu=4096),
        Userspace("boringtun", "boringtun-cli", options=KEEP_PRIVILEGES),
        OpenVpn(),
        IPsec(),
        Wgpy("wgpy-without-offload", without="udp-gso,udp-gro"),
        Wgpy(),
    ]
    return {plane.name: plane for plane in known}


def _find(*commands: str) -> str | None:
    """The path of the first of ``commands`` that is installed, what was built here before what the system has."""
    path = os.pathsep.join([str(CACHE), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return next((found for command in commands if (found := shutil.which(command, path=path))), None)


def _program(*commands: str) -> str:
    """The same, for those who cannot go on without it."""
    if (found := _find(*commands)) is None:
        raise LabError(f"{commands[0]} is not installed: {SETUP}")
    return found


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{argv[0]}: {error}") from error


def _succeeds(argv: Sequence[str]) -> bool:
    return _run(argv).returncode == 0


def _first_line(argv: Sequence[str]) -> str:
    said = _run(argv)
    return next(iter((said.stdout or said.stderr).strip().splitlines()), "unknown version")
