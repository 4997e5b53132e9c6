"""What the agent keeps on disk, in a directory of its own: private keys, and what cannot be read back from anywhere.

``ipv4.key``, ``ipv6.key``
    The private key of each family, as ``wg genkey`` prints it, readable by its owner only. Made once: a node that comes back with
    its old key needs nobody to notice. They belong to the family, not to the interface, whose name may change.
``ipv4.json``, ``ipv6.json``
    What we have asked for: the interface's name and each peer's endpoint. Whether a peer has roamed shows only in comparison
    with that.
``objects.json``
    The cluster's objects as they were last, trimmed: what a node that starts goes by until the API server answers.
``status.json``
    What the agent last said of itself, for ``wgpy mesh`` and for the next agent.
``guard.nft``
    The nftables tables of strict mode, for :file:`wgpy-guard.service` to load before anything else sends a packet.
``agent.lock``
    Held while an agent runs, so that there is only one.

Files are written aside and renamed. The directory may be shared with the data plane, which has other names in it.
"""

import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.model import Family
from controller.source import Objects, Ref
from wgpy import private_file
from wgpy.config import KEY_LENGTH, DeviceSnapshot, Endpoint, parse_endpoint
from wgpy.show import lines
from wgpy.wgconf import format_key, parse_key

log = logging.getLogger(__name__)


STEP_ASIDE = signal.SIGUSR1
"""The signal at which an agent stops and lets go of its directory, but stays as a process: in a pod one that ended would be
started again."""

STEP_ASIDE_SECONDS = 30.0


class StateError(Exception):
    """The state directory cannot be used. The message is one line and holds no key."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What we have asked for so far. ``interface`` is None before the first time."""

    interface: str | None = None
    endpoints: Mapping[bytes, Endpoint] = field(default_factory=dict)


class StateFiles:
    """A state directory, created where it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._assigned: dict[Family, Assigned] = {}  # nobody else writes it
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make the state directory {path}: {error.strerror}") from None

    def lock(self, asks: bool = False) -> None:
        """Be the only agent that uses this directory, until :meth:`close` or the end of the process. One that is there already is
        asked to step aside if ``asks`` says so (STEP_ASIDE), which takes a moment; otherwise that is a StateError."""
        try:
            descriptor = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot write in the state directory {self.path}: {error.strerror}") from None
        if not _is_locked(descriptor):
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            if not (asks and _steps_aside(holder, descriptor)):
                os.close(descriptor)
                raise StateError(f"an agent (process {holder}) is using {self.path}: stop it first, or use another --state")
            os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def private_key(self, family: Family) -> bytes:
        """The family's private key, made now if there is none."""
        path = self._file(family, "key")
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    log.warning("%s was readable by others: its mode is now 0600, but think of a new key (remove the file)", path)
                    os.fchmod(file.fileno(), 0o600)
                return clamp(parse_key(file.read(256).decode("ascii", errors="replace").strip()))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateError(f"cannot read the private key {path}: {error.strerror}") from None
        except ValueError:
            raise StateError(f"{path} holds no private key: remove it to have a new one made") from None
        key = clamp(os.urandom(KEY_LENGTH))
        self._write(path, f"{format_key(key)}\n")
        log.info("made a private key for %s in %s", family, path)
        return key

    def assigned(self, family: Family) -> Assigned:
        """What was saved last. Nothing, if that cannot be read: the worst is that roamed endpoints are forgotten."""
        if family not in self._assigned:
            self._assigned[family] = self._read_assigned(family)
        return self._assigned[family]

    def _read_assigned(self, family: Family) -> Assigned:
        try:
            saved: Any = json.loads(self._file(family, "json").read_text())
            endpoints = {parse_key(key): parse_endpoint(text) for key, text in saved["endpoints"].items()}
            return Assigned(str(saved["interface"]) if saved["interface"] else None, endpoints)
        except FileNotFoundError:
            return Assigned()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            log.warning("%s cannot be read: starting without it", self._file(family, "json"))
            return Assigned()

    def save_assigned(self, family: Family, assigned: Assigned) -> None:
        endpoints = {format_key(key): str(endpoint) for key, endpoint in assigned.endpoints.items()}
        text = json.dumps({"interface": assigned.interface, "endpoints": endpoints}, indent=1)
        self._write(self._file(family, "json"), text + "\n")
        self._assigned[family] = assigned

    def objects(self) -> Objects | None:
        """The objects saved last, None if there are none that can be read."""
        try:
            saved: Any = json.loads((self.path / "objects.json").read_bytes())
            return {Ref(kind, name): manifest for kind, name, manifest in saved}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            log.warning("%s cannot be read: starting without it", self.path / "objects.json")
            return None

    def forget_objects(self) -> None:
        """Have none to go by. Raises StateError."""
        try:
            (self.path / "objects.json").unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"cannot remove {self.path / 'objects.json'}: {error.strerror}") from None

    def save_objects(self, objects: Objects) -> None:
        text = json.dumps([(*ref, manifest) for ref, manifest in objects.items()], separators=(",", ":"))
        self._write(self.path / "objects.json", text)

    def status(self) -> str:
        """The status saved last. Raises StateError if there is none."""
        try:
            return (self.path / "status.json").read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise StateError(f"cannot read {self.path / 'status.json'}: {error}") from None

    def save_status(self, text: str) -> None:
        self._write(self.path / "status.json", text)

    def save_guard(self, ruleset: str) -> None:
        """Keep the ruleset that the next boot is to begin with; an empty one for none."""
        path = self.path / "guard.nft"
        try:
            if (path.read_text() if path.exists() else "") == ruleset:
                return
            if not ruleset:
                path.unlink()
                return
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from None
        self._write(path, ruleset)

    def _file(self, family: Family, suffix: str) -> Path:
        return self.path / f"{str(family).lower()}.{suffix}"

    def _write(self, path: Path, text: str) -> None:
        try:
            private_file.replace(path, text)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from None


def _is_locked(descriptor: int) -> bool:
    """Whether we have the lock now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _steps_aside(holder: str, descriptor: int) -> bool:
    """Ask the process that holds the lock to let it go; whether we have it then."""
    try:
        if not _has_open(int(holder), descriptor):
            return False  # it is in another container, and its number is somebody else's here
        os.kill(int(holder), STEP_ASIDE)
    except (ValueError, OSError):
        return False
    deadline = time.monotonic() + STEP_ASIDE_SECONDS
    while not _is_locked(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _has_open(process: int, descriptor: int) -> bool:
    """Whether a process has the same file open. Raises OSError if there is no such process, or it is not ours to look at."""
    own = os.fstat(descriptor)
    for entry in os.scandir(f"/proc/{process}/fd"):
        try:
            if os.path.samestat(os.stat(entry.path), own):
                return True
        except OSError:
            continue  # closed meanwhile
    return False


def clamp(private_key: bytes) -> bytes:
    """The key as X25519 uses it, and as every device reports it: otherwise it would look changed each time it is read back."""
    return bytes([private_key[0] & 248, *private_key[1:31], (private_key[31] & 127) | 64])


def public_key(private_key: bytes) -> bytes:
    """By way of ``wgpy show``, which has it from noise: the agent itself knows no cryptography."""
    return parse_key(next(lines(DeviceSnapshot(private_key), "public-key")))
