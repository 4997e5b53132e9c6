"""The command ``wgpy``: arguments in, one call out.

Each verb is a function of the arguments after its name that returns the exit status, and whose docstring's first line is
its line in ``wgpy --help``. What is not a verb is the name of an interface, as for wireguard-go: ``wgpy wg0``. Verbs import
what they need when they run, so that a drop-in starts without loading a Kubernetes client.

``wgpy`` may not import ``controller``. The verbs of the agent are therefore entry points (group ``wgpy.commands`` in
setup.cfg), which any installed distribution can add to, and whose extra names what they need.

Exit status: 0; 1 when it could not be done; 2 when it was asked wrongly. Errors are one line on standard error.
"""

import argparse
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from wgpy import __version__
from wgpy.client import Client, ClientError, interfaces
from wgpy.config import NO_KEY, Change, DeviceSnapshot, Endpoint, SetDevice, SetPeer, changes_to, parse_endpoint, parse_unsigned
from wgpy.wgconf import (
    Resolve,
    WgConfError,
    changes_between,
    format_key,
    parse,
    parse_allowed_ip,
    parse_allowed_ips,
    parse_changes,
    parse_host_port,
    parse_keepalive,
    parse_key,
    parse_mark,
)
from wgpy.wgconf import format as format_conf

Verb = Callable[[list[str]], int]


class CommandError(Exception):
    """What could not be done, and what to do about it, in one line."""


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered with one line instead of the whole usage."""

    def __init__(self, verb: str, function: Verb | None = None) -> None:
        description = function.__doc__ if function else None
        super().__init__(
            prog=f"wgpy {verb}".strip(),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


# Keys --------------------------------------------------------------------------------------------------------------


def genkey(arguments: list[str]) -> int:
    """make a private key and print it"""
    from noise.crypto import clamp

    _Parser("genkey", genkey).parse_args(arguments)
    return _print_secret(clamp(os.urandom(32)))


def genpsk(arguments: list[str]) -> int:
    """make a preshared key and print it"""
    _Parser("genpsk", genpsk).parse_args(arguments)
    return _print_secret(os.urandom(32))


def pubkey(arguments: list[str]) -> int:
    """read a private key from standard input and print its public key"""
    from noise.crypto import public_key

    _Parser("pubkey", pubkey).parse_args(arguments)
    try:
        print(format_key(public_key(parse_key(sys.stdin.read().strip()))))
    except ValueError as error:
        raise CommandError(f"standard input: {error}") from None
    return 0


def _print_secret(key: bytes) -> int:
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        print("Warning: writing to a file that others may read: use umask 077 and try again.", file=sys.stderr)
    print(format_key(key))
    return 0


# Showing -----------------------------------------------------------------------------------------------------------


def show(arguments: list[str]) -> int:
    """show interfaces and their peers

    show [all | interfaces | IFNAME [FIELD]], FIELD being one of public-key, private-key, listen-port, fwmark, peers,
    preshared-keys, endpoints, allowed-ips, latest-handshakes, persistent-keepalive, transfer, dump. Keys are hidden in
    the form for people and in JSON unless the environment has WG_HIDE_KEYS=never; WG_COLOR_MODE is always, never or auto.
    """
    from wgpy.show import FIELDS, lines

    parser = _Parser("show", show)
    parser.add_argument("interface", nargs="?", default="all", metavar="IFNAME")
    parser.add_argument("field", nargs="?", metavar="FIELD")
    parser.add_argument("--output", choices=["json"], help="print an object of interfaces by name")
    options = parser.parse_args(arguments)
    if options.field is not None and options.field not in FIELDS:
        parser.error(f"no such field: {options.field!r}, it is one of {', '.join(FIELDS)}")
    if options.field is not None and (options.output or options.interface == "interfaces"):
        parser.error(f"the field {options.field!r} goes with a name or 'all', and without --output")

    names = interfaces() if options.interface in ("all", "interfaces") else [options.interface]
    if options.interface == "interfaces":
        print(*names, sep="\n", end="\n" if names else "")
    elif options.field is None:
        _show_whole(names, options.output)
    else:
        for name in names:
            prefix = f"{name}\t" if options.interface == "all" else ""
            for line in lines(_snapshot(name), options.field):
                print(f"{prefix}{line}")
    return 0


def _show_whole(names: list[str], output: str | None) -> None:
    from wgpy.show import as_json, pretty

    hide_keys = os.environ.get("WG_HIDE_KEYS") != "never"
    if output == "json":
        print(json.dumps({name: as_json(_snapshot(name), hide_keys) for name in names}, indent=2))
        return
    mode = os.environ.get("WG_COLOR_MODE")
    colour = mode == "always" or (mode != "never" and sys.stdout.isatty())
    print("\n".join(pretty(name, _snapshot(name), int(time.time()), colour, hide_keys) for name in names), end="")


def _snapshot(name: str) -> DeviceSnapshot:
    """The device, its zones written as ``wg`` writes them: ``fe80::1%eth0``."""
    snapshot = Client(name).get()
    peers = tuple(replace(peer, config=replace(peer.config, endpoint=_named(peer.config.endpoint))) for peer in snapshot.peers)
    return replace(snapshot, peers=peers)


def _named(endpoint: Endpoint | None) -> Endpoint | None:
    if endpoint is None or not endpoint.scope_id:
        return endpoint
    try:
        return Endpoint(f"{endpoint.host}%{socket.if_indextoname(endpoint.scope_id)}", endpoint.port)
    except OSError:
        return endpoint


def showconf(arguments: list[str]) -> int:
    """print an interface's configuration as a file for setconf, keys and all"""
    parser = _Parser("showconf", showconf)
    parser.add_argument("interface", metavar="IFNAME")
    print(format_conf(_snapshot(parser.parse_args(arguments).interface).config), end="")
    return 0


# Changing ----------------------------------------------------------------------------------------------------------


def set_(arguments: list[str]) -> int:
    """change an interface or its peers

    set IFNAME [listen-port PORT] [fwmark MARK] [private-key FILE] [peer KEY [remove] [preshared-key FILE]
    [endpoint HOST:PORT] [persistent-keepalive SECONDS] [allowed-ips [+|-]ADDRESS/LENGTH,...]]...

    Allowed IPs that all begin with + or - are added and removed one by one; otherwise they replace what was there, and an
    empty word removes all. An empty file, such as /dev/null, removes a key. MARK and SECONDS may be off.
    """
    parser = _Parser("set", set_)
    parser.add_argument("interface", metavar="IFNAME")
    # The first word after the name may not look like an option, but those after allowed-ips may begin with a minus.
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="WORD")
    options = parser.parse_args(arguments)
    if not options.words:
        parser.error("nothing to set")
    try:
        changes = list(_parse_words(options.words))
    except _WordError as error:
        parser.error(str(error))
    Client(options.interface).set(changes)
    return 0


class _WordError(Exception):
    """A word of ``set`` that does not belong where it stands."""


def _parse_words(words: Sequence[str]) -> Iterator[Change]:
    """The words after ``set IFNAME``. Raises _WordError for the words, ValueError and OSError for their values."""
    rest = list(words)
    device, peer = SetDevice(), None
    while rest:
        word = rest.pop(0)
        if peer and word == "remove":
            peer = replace(peer, remove=True)
            continue
        known = [*PEER_WORDS, "remove"] if peer else list(DEVICE_WORDS)
        if word not in known:
            raise _WordError(f"{word!r} is not one of {', '.join(known)}")
        if not rest:
            raise _WordError(f"{word!r} needs a value after it")
        value = rest.pop(0)
        try:
            if word == "peer":
                if peer:
                    yield peer
                elif device != SetDevice():
                    yield device
                peer = SetPeer(parse_key(value))
            elif peer:
                peer = PEER_WORDS[word](peer, value)
            else:
                device = DEVICE_WORDS[word](device, value)
        except ValueError as error:
            raise CommandError(f"{word}: {error}") from None
    yield peer or device


def _key_file(name: str) -> bytes:
    """The key in a file; NO_KEY if it is empty."""
    text = Path(name).read_text().strip()
    return parse_key(text) if text else NO_KEY


def _allowed_ips(peer: SetPeer, text: str) -> SetPeer:
    words = text.split(",") if text else []
    signed = [word[:1] in ("+", "-") for word in words]
    if not any(signed):
        return replace(peer, replace_allowed_ips=True, allowed_ips=parse_allowed_ips(text) if text else ())
    if not all(signed):
        raise ValueError("either all or none begin with + or -")
    return replace(
        peer,
        allowed_ips=(*peer.allowed_ips, *(parse_allowed_ip(word[1:]) for word in words if word[0] == "+")),
        removed_allowed_ips=(*peer.removed_allowed_ips, *(parse_allowed_ip(word[1:]) for word in words if word[0] == "-")),
    )


DEVICE_WORDS: dict[str, Callable[[SetDevice, str], SetDevice]] = {
    "listen-port": lambda device, text: replace(device, listen_port=parse_unsigned(text, 16)),
    "fwmark": lambda device, text: replace(device, fwmark=parse_mark(text)),
    "private-key": lambda device, name: replace(device, private_key=_key_file(name)),
    "peer": lambda device, _: device,
}
PEER_WORDS: dict[str, Callable[[SetPeer, str], SetPeer]] = {
    "preshared-key": lambda peer, name: replace(peer, preshared_key=_key_file(name)),
    "endpoint": lambda peer, text: replace(peer, endpoint=parse_host_port(text, resolve)),
    "persistent-keepalive": lambda peer, text: replace(peer, persistent_keepalive=parse_keepalive(text)),
    "allowed-ips": _allowed_ips,
    "peer": lambda peer, _: peer,
}


def setconf(arguments: list[str]) -> int:
    """make an interface exactly what a file says"""
    client, config = _interface_and_file("setconf", setconf, arguments, parse)
    client.set(changes_to(config))
    return 0


def addconf(arguments: list[str]) -> int:
    """add to an interface what a file says"""
    client, changes = _interface_and_file("addconf", addconf, arguments, parse_changes)
    client.set(changes)
    return 0


def syncconf(arguments: list[str]) -> int:
    """make an interface what a file says without disturbing peers that already are"""
    client, config = _interface_and_file("syncconf", syncconf, arguments, parse)
    client.set(changes_between(client.get().config, config))
    return 0


Parsed = TypeVar("Parsed")


def _interface_and_file(
    verb: str, function: Verb, arguments: list[str], parse_file: Callable[[str, Resolve], Parsed]
) -> tuple[Client, Parsed]:
    """The interface, and what ``parse_file`` makes of the file."""
    parser = _Parser(verb, function)
    parser.add_argument("interface", metavar="IFNAME")
    parser.add_argument("file", metavar="FILE")
    options = parser.parse_args(arguments)
    client = Client(options.interface)
    try:
        return client, parse_file(Path(options.file).read_text(), resolve)
    except WgConfError as error:
        raise CommandError(f"{options.file}: {error}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{options.file}: not a text file") from None


def resolve(host: str, port: int) -> Endpoint:
    """The first UDP address of a host name, or of an address with a zone."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ValueError(f"no address for {host[:60]!r}: {reason}") from None
    family, _, _, _, address = found[0]
    scope_id = address[3] if family == socket.AF_INET6 and len(address) == 4 else 0
    return Endpoint(str(address[0]).partition("%")[0], port, scope_id)


# The data plane ----------------------------------------------------------------------------------------------------


def drop_in(arguments: list[str]) -> int:
    """the data plane, as a drop-in for wireguard-go: in the background unless -f

    Environment, as wireguard-go: LOG_LEVEL (verbose, error, silent), WG_PROCESS_FOREGROUND, WG_TUN_FD, WG_UAPI_FD.
    """
    parser = _Parser("", drop_in)
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("interface", metavar="IFNAME")
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if rest[0].startswith("-"):
            parser.error(f"no such option: {rest[0]!r}")
        parser.error(f"{options.interface!r} is not a command, and nothing may follow the name of an interface: {rest[0]!r}")
    from wgpy.daemon.privileges import restrict

    interface = _interface_name(options.interface)
    if meant := _misspelt(interface):
        print(
            f"wgpy: {interface} is no command, so it becomes an interface; did you mean wgpy {meant}? "
            f"To take it away: ip link delete {interface}",
            file=sys.stderr,
        )
    restrict()  # before anything is loaded that may start a thread
    from wgpy.daemon import run

    return run.drop_in(interface, options.foreground)


def run(arguments: list[str]) -> int:
    """the data plane for services and pods: foreground, one process for each interface"""
    parser = _Parser("run", run)
    parser.add_argument("interfaces", nargs="+", metavar="IFNAME")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep the last configuration here, and start with it")
    parser.add_argument("--metrics", type=_listen_address, metavar="ADDR:PORT", help="serve Prometheus metrics here")
    parser.add_argument("--persist", action="store_true", help="leave the interface standing when this ends")
    options = parser.parse_args(arguments)
    names = [_interface_name(name) for name in options.interfaces]
    from wgpy.daemon.privileges import restrict

    restrict()  # before anything is loaded that may start a thread
    from wgpy.daemon import run as daemon

    return daemon.run(names, options.state, options.metrics, options.persist)


def _listen_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    # Kubernetes puts an IPv6 address without brackets into a command line: $(HOST_IP):9586.
    bracketed = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else text
    try:
        return str(parse_endpoint(bracketed))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a numeric address and a port, such as 127.0.0.1:9586") from None


def _misspelt(name: str) -> str | None:
    """The command that somebody meant who wrote this. Names of interfaces mostly have a digit, which no command has."""
    if not name.isalpha():
        return None
    from difflib import get_close_matches

    return "--version" if name == "version" else next(iter(get_close_matches(name, [*VERBS, *COMMANDS], 1, 0.75)), None)


def _interface_name(name: str) -> str:
    return Client(name).name  # which knows what a name is


# The table of verbs ------------------------------------------------------------------------------------------------

VERBS: dict[str, Verb] = {
    "run": run,
    "show": show,
    "showconf": showconf,
    "set": set_,
    "setconf": setconf,
    "addconf": addconf,
    "syncconf": syncconf,
    "genkey": genkey,
    "genpsk": genpsk,
    "pubkey": pubkey,
}
COMMANDS = {
    "agent": "the node agent: follow the cluster and configure the data plane",
    "leave": "take this node out of the mesh, once its peers no longer send to it",
    "mesh": "every node, the pods behind it, and what becomes of packets; mesh graph draws it",
    "top": "who talks with this node right now, the busiest peers first",
    "doctor": "what is wrong on this node, why it matters, and the command that mends it",
    "verify": "proof that pods' packets are encrypted: marked ones, and a look at the wire",
    "completion": "a script that completes this command line in bash, zsh or fish",
    "demo": "a cluster on this machine, in network namespaces",
    "dashboard": "the whole mesh on a web page: who encrypts to whom, how much, and what is wrong",
    "report": "signed reports of what was encrypted (PCI DSS, HIPAA, GDPR), and their check",
}
"""The verbs that entry points carry, for the help; the entry point itself is found when it is called."""


def _command(name: str, arguments: list[str]) -> int:
    """Call the entry point of this name."""
    from importlib.metadata import entry_points

    found = list(entry_points(group="wgpy.commands", name=name))
    if not found:
        raise CommandError("not installed here: run make setup in a checkout, or pip install 'wgpy[agent]'")
    try:
        function: Verb = found[0].load()
    except ModuleNotFoundError as error:
        if not found[0].extras or (error.name or "").partition(".")[0] == found[0].module.partition(".")[0]:
            raise
        extra = ",".join(found[0].extras)
        pip = f"{shlex.quote(sys.executable)} -m pip"  # of the environment that we are in, which needs not be in PATH
        raise CommandError(f"needs the extra {extra!r} ({error.name} is missing): {pip} install 'wgpy[{extra}]'") from None
    return function(arguments)


def help_text() -> str:
    verbs = {name: (function.__doc__ or "").partition("\n")[0] for name, function in VERBS.items()}
    rows = {"IFNAME": (drop_in.__doc__ or "").partition("\n")[0], **verbs, **COMMANDS}
    listing = "\n".join(f"  {name:<10} {summary}" for name, summary in rows.items())
    return (
        "usage: wgpy [-f|--foreground] IFNAME\n"
        "       wgpy COMMAND [ARGUMENT]...\n"
        "\n"
        "WireGuard in Python: a data plane, and the agent that feeds it.\n"
        "\n"
        f"{listing}\n"
        "\n"
        "wgpy COMMAND --help says more; wgpy --version says which one this is.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status comes back, except where argparse exits by itself (2, or 0 after --help)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words[0] if words else ""
    try:
        status = _run(verb, words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (CommandError, ClientError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"wgpy {verb}: {reason}" if verb in VERBS or verb in COMMANDS else f"wgpy: {reason}", file=sys.stderr)
        return 1


def _run(verb: str, words: list[str]) -> int:
    if not words:
        print(help_text(), file=sys.stderr, end="")
        return 2
    if verb in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if verb == "--version":
        print(f"wgpy {__version__}")
        return 0
    if verb in VERBS:
        return VERBS[verb](words[1:])
    if verb in COMMANDS:
        return _command(verb, words[1:])
    return drop_in(words)
