"""The cluster as a directory of YAML files, one object in each, as ``kubectl get -o yaml`` prints it.

**Reading.** Every ``*.yaml`` and ``*.yml`` is an object. Kinds we have no use for are passed over; files of the others must be
whole (:func:`parse_manifest`). A file that goes bad while we look on counts as what it held when it was last good, and the
log says which line is wrong.

**Noticing.** By polling, since a folder may be shared by a file system that notifies nobody. Whoever adds, replaces or
removes a file changes the directory's own time of modification, so one ``stat`` tells; a file that was changed in place is found
by a look at all of them, once a second or more rarely.

**Writing.** Read, change, compare, replace, under a lock that all our writers take (``flock`` on ``.lock``). The file is
written aside, synced and renamed over the old one: readers need no lock and never see half a file. Someone with an editor takes
no lock, so before a file is replaced it must still be, byte for byte and ``resourceVersion`` included, what was read;
otherwise we start over. Each write bumps the ``resourceVersion``.
"""

import asyncio
import copy
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.mesh import Kind, Mesh
from controller.meshes.calico import Calico
from controller.source import Event, Health, Manifest, Objects, Ref, SourceError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
FULL_LOOK_SECONDS = 1.0
FULL_LOOK_SHARE = 0.01
"""At most this share of the time goes into looking at every file: a large directory is looked at more rarely."""

LOCK_NAME = ".lock"
WRITE_ATTEMPTS = 10

CALICO_KINDS = Calico().kinds


class ManifestError(ValueError):
    """What is wrong with a manifest, and in which line, counted from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(line, message)
        self.line = line
        self.message = message


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """As JSON has no dates, a date in a manifest is a string."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def parse_manifest(data: bytes, kinds: Mapping[str, Kind] = CALICO_KINDS) -> tuple[Ref, dict[str, Any]] | None:
    """The object in a file, or None if its kind is none of ``kinds``. Raises ManifestError."""
    root, manifest = _load(data)
    if not isinstance(manifest, dict):
        raise ManifestError(_line(root), "no Kubernetes object: expected apiVersion, kind and metadata")
    if manifest.get("kind") == "List":
        raise ManifestError(_line(root), "a List: give each of its items a file of its own")
    kind = _required_text(root, manifest, "kind")
    if kind not in kinds:
        return None
    api_version = _required_text(root, manifest, "apiVersion")
    if api_version not in kinds[kind].api_versions:
        expected = " or ".join(kinds[kind].api_versions)
        raise ManifestError(_line(root, "apiVersion"), f"{kind} comes under {expected}, not {api_version!r}")
    ref = Ref(kind, _required_text(root, manifest, "metadata", "name"))
    for path in kinds[kind].required:
        _required_text(root, manifest, *path)
    for path in (("spec",), ("metadata", "annotations")):
        if not isinstance(_value(manifest, *path) or {}, dict):
            raise ManifestError(_line(root, *path), f"{'.'.join(path)} is not a mapping")
    return ref, manifest


class Directory:
    """The files and the objects in them. Blocking. Writing may be done in another thread than reading."""

    def __init__(self, path: Path, kinds: Mapping[str, Kind] = CALICO_KINDS) -> None:
        self.path = path
        self.objects: Objects = {}
        self._kinds = kinds
        self._files: dict[str, _File] = {}
        self._missing: set[str] = set()
        self._directory_time = 0
        self._next_full_look = 0.0
        self.is_readable = True

    def load(self) -> Objects:
        """Read everything. Raises SourceError if anything is malformed: there is no last good state to go on with."""
        try:
            self._look(time.monotonic())
        except OSError as error:
            raise SourceError(f"cannot read the directory {self.path}: {error.strerror}") from None
        malformed = [f"{self.path / name}:{file.error}" for name, file in sorted(self._files.items()) if file.error]
        if malformed:
            more = f" (and {len(malformed) - 1} more like it)" if len(malformed) > 1 else ""
            raise SourceError(malformed[0] + more)
        return self.objects

    def refresh(self, now: float) -> bool:
        """Whether objects differ from what they were. Cheap when nothing has happened. ``now`` is of a monotonic clock."""
        try:
            if now < self._next_full_look and os.stat(self.path).st_mtime_ns == self._directory_time:
                return False
            changed = self._look(now)
        except OSError as error:
            if self.is_readable:
                log.warning("cannot read the directory %s: %s; the last state stays", self.path, error.strerror)
            self.is_readable = False
            return False
        self.is_readable = True
        return changed

    # Reading

    def _look(self, now: float) -> bool:
        """Look at every file, read those that have changed."""
        started = time.monotonic()
        self._directory_time = os.stat(self.path).st_mtime_ns
        with os.scandir(self.path) as entries:
            signatures = {entry.name: _signature(entry.stat()) for entry in entries if _is_manifest(entry)}
        # Some editors move a file away before they write the new one: believe it is gone when it is gone twice.
        missing = self._files.keys() - signatures.keys()
        for name in missing & self._missing:
            del self._files[name]
        self._missing = set(missing - self._missing)
        owners = {file.ref: name for name, file in self._files.items() if name in signatures}
        for name in sorted(signatures):
            known = self._files.get(name)
            if known is None or known.signature != signatures[name]:
                self._files[name] = self._read_file(name, known, owners)
                owners.setdefault(self._files[name].ref, name)
        took = time.monotonic() - started
        self._next_full_look = now if self._missing else now + max(FULL_LOOK_SECONDS, took / FULL_LOOK_SHARE)
        # A file that is missing for the first time gives way to one that is there.
        files = [self._files[name] for name in sorted(self._files, key=lambda name: (name in signatures, name))]
        objects = {file.ref: file.manifest for file in files if file.ref and file.manifest is not None}
        changed = objects != self.objects
        self.objects = objects
        return changed

    def _read_file(self, name: str, known: "_File | None", owners: Mapping[Ref | None, str]) -> "_File":
        """What a file holds now; if that cannot be told, what it held before. ``owners`` are the files of objects by ref."""
        signature = None
        try:
            with open(self.path / name, "rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                parsed = parse_manifest(file.read(), self._kinds)
            if parsed is None:
                return _File(signature)
            if (twin := owners.get(parsed[0], name)) != name:
                signature = None  # read it again each time: it counts as soon as the other is gone
                raise ManifestError(1, f"{parsed[0]} is in {twin} already")
        except FileNotFoundError:
            return known or _File(None)  # gone since we looked
        except ManifestError as error:
            complaint = f"{error.line}: {error.message}"
        except OSError as error:
            complaint = f" {error.strerror}"
        else:
            if known is not None and known.error:
                log.info("%s is good again", self.path / name)
            return _File(signature, *parsed)
        before = known or _File(None)
        if complaint != before.error and (self.objects or known):
            stays = "what it held before stays" if before.manifest is not None else "it counts as absent"
            log.warning("%s:%s; %s", self.path / name, complaint, stays)
        return _File(signature, before.ref, before.manifest, complaint)

    def locate(self, ref: Ref, path: Sequence[str | int]) -> str:
        """The file of an object, and the line of the field at ``path`` or of what there is on the way to it."""
        for name, file in self._files.items():
            if file.ref == ref:
                try:
                    root, _ = _load((self.path / name).read_bytes())
                except (OSError, ManifestError):
                    return str(self.path / name)
                return f"{self.path / name}:{_line(root, *path)}"
        return str(ref)

    # Writing

    def update(self, ref: Ref, change: Callable[[dict[str, Any]], None]) -> bool:
        """Let ``change`` alter the newest state of an object in place, and write it if it did. Raises SourceError.

        ``change`` may be called more than once, each time with a fresh copy.
        """
        with self._locked():
            for _ in range(WRITE_ATTEMPTS):
                name, before, manifest = self._find(ref)
                changed = copy.deepcopy(manifest)
                change(changed)
                if changed == manifest:
                    return False
                changed["metadata"]["resourceVersion"] = _next_version(manifest)
                if self._replace(name, before, changed):
                    return True
        raise SourceError(f"{self.path / name}: cannot be written, as something else keeps changing it")

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Add an object. Raises SourceError if there is one of its kind and name."""
        ref = Ref(manifest["kind"], manifest["metadata"]["name"])
        name = f"{ref.kind}-{ref.name}.yaml".lower().replace("/", "-")
        with self._locked():
            if self._search(ref) is not None or (self.path / name).exists():
                raise SourceError(f"{self.path / name}: {ref} is there already")
            manifest = copy.deepcopy(dict(manifest))
            manifest["metadata"]["resourceVersion"] = "1"
            self._replace(name, None, manifest)

    def delete(self, ref: Ref) -> None:
        """Remove an object, if it is there."""
        with self._locked():
            found = self._search(ref)
            if found is not None:
                (self.path / found[0]).unlink(missing_ok=True)
                self._directory_time = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SourceError(f"cannot write in the directory {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise SourceError(f"cannot write in the directory {self.path}: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def _find(self, ref: Ref) -> tuple[str, bytes, dict[str, Any]]:
        found = self._search(ref)
        if found is None:
            raise SourceError(f"there is no {ref} in {self.path}")
        return found

    def _search(self, ref: Ref) -> tuple[str, bytes, dict[str, Any]] | None:
        """The file of an object as it is on disk now: the one we know, else whichever it is."""
        likely = [name for name, file in list(self._files.items()) if file.ref == ref]
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if _is_manifest(entry))
        for name in (*likely, *names):
            try:
                data = (self.path / name).read_bytes()
                parsed = parse_manifest(data, self._kinds)
            except (FileNotFoundError, ManifestError):
                continue
            if parsed is not None and parsed[0] == ref:
                return name, data, parsed[1]
        return None

    def _replace(self, name: str, before: bytes | None, manifest: Mapping[str, Any]) -> bool:
        """Put ``manifest`` in the place of ``before``. False if something else has come in between."""
        target, aside = self.path / name, self.path / f".{name}.tmp"
        text = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)
        mode = 0o644 if before is None else os.stat(target).st_mode & 0o777
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(text.encode())
                file.flush()
                os.fsync(descriptor)
            if before is not None and target.read_bytes() != before:
                return False
            os.rename(aside, target)
            self._directory_time = 0  # look, even if the file system's clock has not ticked since the last look
        finally:
            aside.unlink(missing_ok=True)
        return True


class DirectorySource:
    """A :class:`controller.source.Source` of a directory, of the objects that ``mesh`` looks at."""

    def __init__(self, path: Path, mesh: Mesh, poll_seconds: float = POLL_SECONDS) -> None:
        self.name = f"directory {path}"
        self._directory = Directory(path, mesh.kinds)
        self._mesh = mesh
        self._poll_seconds = poll_seconds
        self._trimmed: dict[Ref, tuple[Manifest, Manifest]] = {}
        self._objects: Objects = {}
        self._is_listed = False

    async def list(self) -> Objects:
        self._directory.load()
        self._take()
        self._is_listed = True
        return self._objects

    async def changed(self) -> Objects:
        while not self._is_listed:
            try:
                return await self.list()
            except SourceError:
                await asyncio.sleep(self._poll_seconds)
        while not (self._directory.refresh(time.monotonic()) and self._take()):
            await asyncio.sleep(self._poll_seconds)
        return self._objects

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        def change(manifest: dict[str, Any]) -> None:
            present = manifest["metadata"].setdefault("annotations", {}) or {}
            manifest["metadata"]["annotations"] = present
            for name, value in annotations.items():
                if value is None:
                    present.pop(name, None)
                else:
                    present[name] = value

        # In a thread: another writer may hold the lock.
        await asyncio.to_thread(self._directory.update, ref, change)

    async def tell(self, node: str, event: Event) -> None:
        """There are no Events in a directory; the agent's log has them, too."""

    async def merge_status(self, node: str, patch: Manifest) -> None:
        """Of the status it is the conditions that are merged, by their type: nothing else is ever asked for."""
        await asyncio.to_thread(self._directory.update, Ref("Node", node), lambda manifest: _merge_conditions(manifest, patch))

    def health(self) -> Health:
        return Health(self._directory.is_readable, time.time())

    async def close(self) -> None:
        """There is nothing open."""

    def locate(self, ref: Ref, path: Sequence[str | int]) -> str:
        return self._directory.locate(ref, path)

    def _take(self) -> bool:
        """Take over what the directory holds now, trimmed; whether that differs from what was taken last."""
        trimmed = {}
        for ref, manifest in self._directory.objects.items():
            known = self._trimmed.get(ref)
            if known is None or known[0] is not manifest:
                small = self._mesh.trim(manifest)
                known = manifest, known[1] if known is not None and known[1] == small else small
            trimmed[ref] = known
        self._trimmed = trimmed
        before, self._objects = self._objects, {ref: small for ref, (_, small) in trimmed.items()}
        return before != self._objects


def _merge_conditions(manifest: dict[str, Any], patch: Manifest) -> None:
    status = manifest.get("status") or {}
    before = status.get("conditions") or []
    conditions = {one["type"]: one for one in before}
    for change in patch["status"]["conditions"]:
        if change.get("$patch") == "delete":
            conditions.pop(change["type"], None)
        else:
            conditions[change["type"]] = {**conditions.get(change["type"], {}), **change}
    if (after := list(conditions.values())) != before:
        manifest["status"] = {**status, "conditions": after}


@dataclass(frozen=True, slots=True)
class _File:
    """What a file holds, or last held if ``error`` says what is wrong with it now."""

    signature: tuple[int, ...] | None
    ref: Ref | None = None
    manifest: Manifest | None = None
    error: str | None = None


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_manifest(entry: "os.DirEntry[str]") -> bool:
    return entry.name.endswith((".yaml", ".yml")) and not entry.name.startswith(".") and entry.is_file()


def _next_version(manifest: Mapping[str, Any]) -> str:
    version = str(manifest["metadata"].get("resourceVersion", ""))
    return str(int(version) + 1) if version.isascii() and version.isdigit() else "1"


# YAML with its lines ------------------------------------------------------------------------------------------------


def _load(data: bytes) -> tuple[yaml.Node | None, Any]:
    """The one document in a file, as nodes that know their lines and as plain data. Raises ManifestError."""
    try:
        loader = _Loader(data.decode())
    except UnicodeDecodeError as error:
        raise ManifestError(data.count(b"\n", 0, error.start) + 1, "not YAML: not UTF-8") from None
    except yaml.YAMLError as error:
        raise ManifestError(1, f"not YAML: {_yaml_reason(error)}") from None
    try:
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        raise ManifestError(mark.line + 1 if mark else 1, f"not YAML: {_yaml_reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(1, f"not YAML: {type(error).__name__}") from None
    finally:
        loader.dispose()


def _yaml_reason(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read").split())


def _line(root: yaml.Node | None, *path: str | int) -> int:
    """The line of the field at ``path``, or of the last one on the way that is there."""
    node, line = root, 1 if root is None else root.start_mark.line + 1
    for step in path:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def _value(manifest: Any, *path: str) -> Any:
    for name in path:
        manifest = manifest.get(name) if isinstance(manifest, dict) else None
    return manifest


def _required_text(root: yaml.Node | None, manifest: dict[str, Any], *path: str) -> str:
    value = _value(manifest, *path)
    if value is None or value == "":
        raise ManifestError(_line(root, *path), f"lacks {'.'.join(path)}")
    if not isinstance(value, str):
        raise ManifestError(_line(root, *path), f"{'.'.join(path)} is not a string: put it in quotes")
    return value
