"""One data-plane process: a TUN, its sockets, its UAPI socket and one device, wired together.

Two ways in. :func:`drop_in` is ``wgpy IFNAME``, which does what ``wireguard-go IFNAME`` does: it goes into the
background once the interface and its UAPI socket can be used, and ends when the interface or the socket file is
deleted. :func:`run` is ``wgpy run IFNAME…``, for services and pods: foreground, a persistent interface, a state
directory, metrics, one process for each interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

# numpy's linear algebra would start a thread for each core, which nobody here needs and which wakes up.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import uvloop

from noise.constants import REKEY_TIMEOUT_JITTER
from tun import Tun, TunError, adopt_tun, open_tun
from tun.link import LinkMonitor
from wgpy import private_file, wgconf
from wgpy.config import DEFAULT_MTU, Change, DeviceConfig, SetDevice, changes_to
from wgpy.core import gradual
from wgpy.core.device import Device
from wgpy.daemon import privileges
from wgpy.daemon.pump import Pump, boottime
from wgpy.daemon.uapi_server import DIRECTORY, TURN, Deletion, SocketInUse, UapiServer, listen
from wgpy.daemon.udp import Sockets
from wgpy.daemon.unreachable import Unreachables
from wgpy.daemon.ways import Ways
from wgpy.uapi import format_get_chunks

if TYPE_CHECKING:
    from wgpy.exposition import Server

log = logging.getLogger("wgpy")

LOOK_SECONDS = 0.5
"""How often an interface is looked at that is in another network namespace."""

GREET_PORTION = 8
"""Handshakes begun before packets get their turn: about two milliseconds of work."""


class SetupError(Exception):
    """The process cannot do its work. The message is one line: what is wrong, and what to do."""


OFFLOADS = {"tun-offload", "udp-gso", "udp-gro"}
"""What WGPY_WITHOUT may name."""


class Process:
    """Everything one interface needs, from :meth:`start` until :meth:`run` returns."""

    def __init__(self, tun: Tun, listener: socket.socket, state: Path | None = None, metrics: str | None = None) -> None:
        self._tun = tun
        self._listener = listener
        self._state = state
        self._metrics_address = metrics
        self._stopped = asyncio.Event()
        self._metrics: Server | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._is_restored = False
        without = _without()
        if sockets := without - {"tun-offload"}:
            log.warning("the sockets do without %s, as WGPY_WITHOUT says: this costs speed", ", ".join(sorted(sockets)))
        self._sockets = Sockets(segmentation="udp-gso" not in without, coalescing="udp-gro" not in without)
        self._pump = Pump(tun, self._sockets, self._stop)
        self._socket_file = Path(listener.getsockname())
        self._deletion = Deletion(self._socket_file)
        self._link = LinkMonitor(tun.fileno())
        link = self._link.state()
        self._next_look: asyncio.TimerHandle | None = None
        self._ways = Ways(self._sockets)
        self._unreachables = Unreachables()
        self.device = Device(
            self._pump,
            random_bytes=secrets.token_bytes,
            jitter=lambda: random.uniform(0, REKEY_TIMEOUT_JITTER),
            wall_clock=time.time_ns,
            mtu=link.mtu or DEFAULT_MTU,
            way=self._ways.way,
            unreachable=self._unreachables.refused,
        )
        self.device.inbound.coalescer.tso = tun.offloads.tcp_gro
        self.device.inbound.coalescer.uso = tun.offloads.udp_gro
        if missing := [field.name for field in fields(tun.offloads) if not getattr(tun.offloads, field.name)]:
            log.warning("the interface does without %s: this costs speed", ", ".join(missing))
        self._uapi = UapiServer(listener, self._reply, self._apply)

    async def start(self) -> None:
        """Restore the state, follow the link, answer UAPI. Raises SetupError, and leaves nothing behind then."""
        loop = asyncio.get_running_loop()
        try:
            await self._restore()
            self._pump.start(self.device)
            self._ways.start(self.device)
            self._link_changed()
            loop.add_reader(self._link.fileno(), self._link_changed)
            loop.add_reader(self._deletion.fileno(), self._socket_file_changed)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop)
            await self._uapi.start()
            await self._start_metrics()
        except (OSError, SetupError) as error:
            await self.stop()
            raise SetupError(str(error)) from None

    async def _start_metrics(self) -> None:
        if self._metrics_address is None:
            return
        from wgpy.daemon.metrics import DeviceCollector, pages
        from wgpy.exposition import Server

        collector = DeviceCollector(self._tun.name, self.device, self._sockets, self._tun.offloads, self._unreachables)
        server = Server(self._metrics_address, pages(collector, self._unreadiness))
        try:
            await server.start()
        except OSError as error:
            raise SetupError(f"metrics cannot be served on {self._metrics_address}: {error.strerror}; choose another") from None
        self._metrics = server

    async def run(self) -> None:
        """Work until the interface or the socket file is deleted, or a signal says so."""
        # What lives now lives long: the collector need not look at it again, and what is left is small.
        gc.collect()
        gc.freeze()
        gc.set_threshold(700, 10, 1000)  # a full collection looks at every allowed IP: 30 ms where they are 65,280
        await self._stopped.wait()
        self._save(self.device.snapshot().config)
        await self.stop()

    async def stop(self) -> None:
        """Let go of everything: sockets, UAPI socket file, interface (a persistent one stays)."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link.fileno())
        loop.remove_reader(self._deletion.fileno())
        if self._greeting is not None:
            self._greeting.cancel()
        self._pump.stop()
        if self._next_look is not None:
            self._next_look.cancel()
        self._ways.stop()
        self._unreachables.close()
        self.device.down()
        with contextlib.suppress(AttributeError):
            await self._uapi.stop()
        if self._metrics is not None:
            await self._metrics.stop()
        if not self._deletion.happened():
            _remove(self._socket_file)  # by its name: the server has closed the socket already
        self._deletion.close()
        self._listener.close()
        self._link.close()
        self._sockets.close()
        self._tun.close()

    def _stop(self) -> None:
        self._stopped.set()

    def _socket_file_changed(self) -> None:
        if self._deletion.happened():
            log.info("the UAPI socket file was deleted: ending")
            self._stop()

    # -- link state ----------------------------------------------------------------------------------------------

    def _link_changed(self) -> None:
        """Something happened to an interface: ours may be up, down, of another MTU, renamed, moved or gone."""
        if self._stopped.is_set():
            return
        was_down = self._link.drain()
        try:
            state = self._link.state()
        except (OSError, TunError):
            self._stop()
            return
        now = boottime()
        device = self.device
        if was_down and state.is_up and device.is_up:
            self._go_down()  # it is up again already, but what it had is over: sessions, and packets that waited
        if state.mtu != device.mtu:
            device.mtu_changed(state.mtu, now)
        self._unreachables.follow(self._tun.fileno(), state, is_elsewhere=self._link.is_elsewhere)
        if self._link.is_elsewhere and self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_elsewhere)
        if state.is_up and not device.is_up:
            try:
                self._bind(device.listen_port, device.fwmark)
            except OSError as error:
                log.error("UDP port %d cannot be bound: %s; choose another", device.listen_port, error.strerror)
                return
            log.info("interface up, listening on UDP port %d", self._sockets.port)
            device.up(now)
            if self._is_restored:
                self._is_restored = False
                self._greeting = asyncio.get_running_loop().create_task(self._greet())
        elif not state.is_up and device.is_up:
            self._go_down()
        self._pump.settle(now)

    def _go_down(self) -> None:
        log.info("interface down")
        self.device.down()
        self._unbind()

    def _look_elsewhere(self) -> None:
        """Nobody tells us what becomes of an interface in another network namespace: look."""
        self._next_look = None
        self._link_changed()

    def _unreadiness(self) -> str | None:
        """What keeps us from carrying packets. An interface that is down lacks nothing: it waits for who takes it up."""
        if self.device.is_up:
            return None
        try:
            is_up = self._link.state().is_up
        except (OSError, TunError):
            return "the interface is gone"
        return f"the interface is up, but UDP port {self.device.listen_port} cannot be bound" if is_up else None

    def _bind(self, port: int, fwmark: int) -> None:
        self._pump.unwatch_sockets()
        try:
            self._sockets.bind(port, fwmark)
        finally:
            self._pump.watch_sockets()
        self._ways.look_again()  # port and mark are what policy rules ask for

    def _unbind(self) -> None:
        self._pump.unwatch_sockets()
        self._sockets.close()

    # -- configuration -------------------------------------------------------------------------------------------

    def _reply(self) -> Iterator[str]:
        """The pieces of the reply to a UAPI get."""
        self._link_changed()
        device = self.device
        head = device.snapshot([])
        if self._sockets.is_bound:
            head = replace(head, listen_port=self._sockets.port)
        elif self._unreadiness() is not None:
            head = replace(head, listen_port=0)  # it has none, as wireguard-go would say
        peers = (device.peer_snapshot(peer) for peer in list(device.peers.values()) if device.peers.get(peer.public_key) is peer)
        return format_get_chunks(head, peers)

    async def _apply(self, changes: list[Change]) -> None:
        """Apply changes in turns. What can fail, the port, is done first: then nothing else has changed."""
        self._link_changed()
        self._set_sockets(changes)
        now = boottime()
        for step in gradual.steps(self.device, changes):
            self.device.apply([step], now)
            if boottime() - now >= TURN:
                self._pump.settle(now)
                await asyncio.sleep(0)  # packets first
                now = boottime()
        self._pump.settle(now)
        if not self.device.is_up:
            self._link_changed()  # the link may be up for long, and its port could not be bound until now
        if self._state_file is not None:
            # In a thread, since a disk takes its time; before the answer, since who is answered relies on it.
            await asyncio.get_running_loop().run_in_executor(None, self._save, self.device.snapshot().config)

    def _set_sockets(self, changes: Iterable[Change]) -> None:
        device = self.device
        asked_for, port, fwmark = False, device.listen_port, device.fwmark
        for change in changes:
            if isinstance(change, SetDevice):
                asked_for = asked_for or change.listen_port is not None
                port = port if change.listen_port is None else change.listen_port
                fwmark = fwmark if change.fwmark is None else change.fwmark
        if not device.is_up:
            if asked_for and self._unreadiness() is not None:
                self._bind(port, fwmark)  # who asks for a port of an interface that is up is told whether it has it
                self._unbind()
            return
        if port != device.listen_port and port != self._sockets.port:
            self._bind(port, fwmark)
        elif fwmark != device.fwmark:
            self._sockets.set_fwmark(fwmark)
            self._ways.look_again()

    # -- state directory -----------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path | None:
        return None if self._state is None else self._state / f"{self._tun.name}.conf"

    async def _restore(self) -> None:
        path = self._state_file
        if path is None or not path.exists():
            return
        try:
            config = wgconf.parse(path.read_text())
        except (OSError, ValueError) as error:
            raise SetupError(f"{path} cannot be read: {error}; mend or delete it") from None
        _try_port(config.listen_port, path)
        self.device.apply(changes_to(config), boottime())
        self._is_restored = True
        log.info("restored %d peers from %s", len(config.peers), path)

    async def _greet(self) -> None:
        """Begin a handshake with every peer. They may hold sessions with the process before us and send data we cannot
        open, and would notice only 15 s after it went unanswered."""
        peers = [peer for peer in self.device.peers.values() if peer.endpoint is not None]
        for start in range(0, len(peers), GREET_PORTION):
            now = boottime()
            for peer in peers[start : start + GREET_PORTION]:
                if self.device.peers.get(peer.public_key) is peer and not peer.can_send(now):
                    self.device.send_initiation(peer, now)
            self._pump.settle(now)
            await asyncio.sleep(0)

    def _save(self, config: DeviceConfig) -> None:
        """Keep the configuration, so that a new process goes on where this one was killed."""
        path = self._state_file
        if path is None:
            return
        try:
            private_file.replace(path, wgconf.format(config))
        except OSError as error:
            log.error("the configuration cannot be kept in %s: %s", path, error.strerror)


def _try_port(port: int, path: Path) -> None:
    """A port in use is said now, not in a log when the link comes up. Raises SetupError."""
    sockets = Sockets()
    try:
        sockets.bind(port, 0)
    except OSError as error:
        raise SetupError(
            f"UDP port {port} cannot be bound: {error.strerror}; end what has it, or change ListenPort in {path}"
        ) from None
    sockets.close()


# The process -------------------------------------------------------------------------------------------------------


async def _serve(name: str, *, state: Path | None, metrics: str | None, persist: bool, ready: Callable[[], None]) -> None:
    """Set up interface ``name``, call ``ready``, and work until told to end. Raises SetupError with everything undone."""
    listener = _listener(name)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        undo.callback(_remove, Path(listener.getsockname()))
        try:
            tun = _tun(name)
            undo.callback(tun.close)
            process = Process(tun, listener, state, metrics)
        except TunError as error:
            raise SetupError(str(error)) from None
        except OSError as error:
            raise SetupError(f"{name} cannot be watched: {error.strerror}") from None
        undo.pop_all()  # the process sees to it from here on
    await process.start()
    if persist:
        try:
            tun.persist()  # last: a set-up that fails must leave no interface behind
        except TunError as error:
            await process.stop()
            raise SetupError(str(error)) from None
    if off := privileges.shortfall():
        log.info("what is off, for want of a capability: %s", off)
    log.info("ready")
    ready()
    await process.run()


def _remove(socket_file: Path) -> None:
    """Who was handed the socket by another user cannot."""
    try:
        socket_file.unlink()
    except OSError as error:
        log.error("%s cannot be removed: %s; delete it", socket_file, error.strerror)


def _listener(name: str) -> socket.socket:
    if (fd := os.environ.pop("WG_UAPI_FD", None)) is not None:
        return socket.socket(fileno=int(fd))
    try:
        return listen(name)
    except SocketInUse as error:
        raise SetupError(f"{error}: {name} is already running") from None
    except OSError as error:
        raise SetupError(f"the UAPI socket cannot be bound in {DIRECTORY}: {error.strerror}; run as root") from None


def _tun(name: str) -> Tun:
    offload = "tun-offload" not in _without()
    if (fd := os.environ.pop("WG_TUN_FD", None)) is not None:
        return adopt_tun(int(fd), offload=offload)
    return open_tun(name, mtu=DEFAULT_MTU, offload=offload)


def _without() -> set[str]:
    """WGPY_WITHOUT: help of the kernel to do without, as on an old one or past a driver that gets it wrong. Raises SetupError."""
    wanted = {word.strip() for word in os.environ.get("WGPY_WITHOUT", "").split(",")} - {""}
    if unknown := wanted - OFFLOADS:
        raise SetupError(f"WGPY_WITHOUT names {', '.join(sorted(unknown))}; it knows {', '.join(sorted(OFFLOADS))}")
    return wanted


def _serve_until_done(
    name: str,
    *,
    state: Path | None = None,
    metrics: str | None = None,
    persist: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> int:
    try:
        uvloop.run(_serve(name, state=state, metrics=metrics, persist=persist, ready=ready))
    except SetupError as error:
        print(f"wgpy: {error}", file=sys.stderr)
        return 1
    return 0


def _configure_logging(name: str, default: str) -> str:
    """LOG_LEVEL as wireguard-go has it: verbose or debug, error, silent; and info, which is what services want."""
    level = os.environ.get("LOG_LEVEL", default)
    levels = {
        "verbose": logging.DEBUG,
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "error": logging.ERROR,
        "silent": logging.CRITICAL + 1,
    }
    logging.basicConfig(level=levels.get(level, logging.ERROR), format=f"%(levelname)s: ({name}) %(asctime)s %(message)s")
    return level


def drop_in(ifname: str, foreground: bool) -> int:
    """``wgpy IFNAME``: the exit status. In the background, 0 comes once interface and UAPI socket can be used."""
    level = _configure_logging(ifname, "error")
    if foreground or os.environ.get("WG_PROCESS_FOREGROUND") == "1":
        return _serve_until_done(ifname)
    return _in_background(ifname, keep_output=level in ("verbose", "debug"))


def _in_background(ifname: str, *, keep_output: bool) -> int:
    is_ready, tell_ready = os.pipe()
    if os.fork():
        os.close(tell_ready)
        return 0 if os.read(is_ready, 1) else 1
    os.close(is_ready)
    os.setsid()

    def ready() -> None:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0,) if keep_output else (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(tell_ready, b"1")
        os.close(tell_ready)

    os._exit(_serve_until_done(ifname, ready=ready))


def run(names: list[str], state: Path | None, metrics: str | None, persist: bool) -> int:
    """``wgpy run IFNAME…``: the exit status. With several interfaces each is a process of its own, started again when it dies.

    ``metrics`` is ADDRESS:PORT; the second interface serves its metrics on the next port, and so on.
    """
    _configure_logging(",".join(names), "info")
    if state is not None:
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            print(f"wgpy: the state directory {state} cannot be made: {error.strerror}", file=sys.stderr)
            return 1
        if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
            print(f"wgpy: the state directory {state} is another user's: give it to the one who runs this", file=sys.stderr)
            return 1
    if len(names) == 1:
        return _serve_until_done(names[0], state=state, metrics=metrics, persist=persist)
    from wgpy.daemon.supervise import supervise

    return supervise([_child_command(name, state, _nth_address(metrics, i), persist) for i, name in enumerate(names)])


def _child_command(name: str, state: Path | None, metrics: str | None, persist: bool) -> list[str]:
    command = [sys.executable, "-m", "wgpy", "run", name]
    if state is not None:
        command += ["--state", str(state)]
    if metrics is not None:
        command += ["--metrics", metrics]
    return [*command, "--persist"] if persist else command


def _nth_address(address: str | None, n: int) -> str | None:
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + n}"
