"""One kind of object: listed, then watched, for ever. (Reflector is client-go's word for it.)

**Listing** is a watch that begins with all there is (``sendInitialEvents``): object by object, so that memory holds the trimmed
objects and one whole one, never a list of them all. API servers that cannot do that (before 1.32, or aggregated ones) are asked
for pages. Nobody sees a list before it is complete: until then what was known stays.

**Watching** goes on from the version of the last thing heard. It ends after a minute or so, by the server's hand, and is taken up
where it ended: if anything was missed, the server says so (410), and everything is listed again. So there is a proof every 90 s
at the latest that what we know is what is, for the price of one small request.

**Listing again** without need guards against what that does not prove: an API server restored from a backup, or a mistake in its
cache or in here. It is done every 90 s where it is cheap. One round costs the API server the size of the list times the number of
nodes, so the pause grows by the square of the size: 90 s up to 2 MB (140 Nodes of 14 KB), an hour at 1,000 Nodes, a day at 5,000.

**What goes wrong** leaves what is known as it is, and is tried again, ever more slowly. A kind that is not served is *absent*:
no failure, but a state with no objects. A kind that was there and vanishes is believed to be gone only after a while, since an
API server that has just started does not serve all it is going to serve.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controller.kube.backoff import REFUSED_SECONDS, RELIST_SECONDS, TROUBLED_SECONDS, UNREACHABLE_SECONDS, Backoff, jittered
from controller.kube.connection import Connection, Refused, Troubled
from controller.mesh import Kind
from controller.source import Manifest, Ref, SourceError, SourceUnavailable

log = logging.getLogger(__name__)

WATCH_SECONDS = 90.0
"""How long a watch lasts, jittered downwards."""

LISTING_SECONDS = 600
"""How long a list may take, on a slow line."""

SILENCE_SECONDS = 15.0
"""So long may nothing come while a list is being sent, or after a watch ought to have ended."""

SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner is taken up after a pause, as if it had failed: somebody in between may be ending them all."""

TROUBLED_FAILURES = 3
"""So many failures in a row are worth a word: about half a second."""

PAGE_OBJECTS = 100

ABSENT_SECONDS = 20.0
"""How often to look whether an absent kind is served by now."""

GONE_SECONDS = 15.0
MISSING_SECONDS = 0.5
"""How long a kind that was served must be missing before it counts as gone, and how often to look meanwhile."""

RESYNC_SECONDS = 90.0
RESYNC_BYTES = 2e6

WATCH = {"watch": "1", "allowWatchBookmarks": "true"}
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class Gone(SourceUnavailable):
    """The version we know of is no longer, or not yet, known to the API server: list again."""


@dataclass(slots=True)
class Counts:
    """What a reflector has done, for metrics."""

    lists: int = 0
    watches: int = 0
    errors: int = 0


class Reflector:
    """The objects of one kind. ``notify`` is called whenever they, or the reflector's state, have changed."""

    def __init__(
        self, connection: Connection, kind: Kind, trim: Callable[[Manifest], Manifest], notify: Callable[[], None]
    ) -> None:
        self.kind = kind
        self.objects: dict[Ref, Manifest] = {}
        self.api_version: str | None = None
        """The one it is served under. None: absent, or not known yet."""
        self.is_synced = False
        """The objects have been listed once, or the kind is known to be absent."""
        self.is_current = False
        """They are what the API server has, as far as can be known: no failure since."""
        self.failure: SourceError | None = None
        self.counts = Counts()
        self._connection = connection
        self._trim = trim
        self._notify = notify
        self._backoff = Backoff()
        self._hurry = asyncio.Event()
        self._version = ""
        self._floor = "0"
        """A list must not be older than this version: "0" is any, "" is none, that is, as new as can be."""
        self._streams = True
        """Lists are asked for as a watch."""
        self._next_list = float("-inf")
        self._missing_since: float | None = None
        self._complaints: dict[Ref, str] = {}

    def hurry(self) -> None:
        """Forget the last failure, and do not wait any longer."""
        self.failure = None
        self._hurry.set()

    async def run(self) -> None:
        """Follow the objects. Never returns."""
        while True:
            try:
                pause = await self._step()
            except SourceError as error:
                pause = self._failed(error)
            await self._sleep(pause)

    async def _step(self) -> float:
        """One list or one watch; the seconds to wait before the next. Raises SourceError."""
        now = time.monotonic()
        if self._version and now < self._next_list:
            return await self._watch()
        api_version = await self._discover()
        if api_version is None:
            return self._absent(now)
        self.api_version, self._missing_since = api_version, None
        await self._list()
        return 0.0

    # Failures

    @property
    def is_troubled(self) -> bool:
        """It has failed several times in a row."""
        return self._backoff.failures >= TROUBLED_FAILURES

    def _failed(self, error: SourceError) -> float:
        """Take note; the seconds to wait."""
        longest, asked_for = REFUSED_SECONDS, None
        if isinstance(error, Refused | Troubled) and is_gone(error.status, str(error)):
            error = Gone(str(error))
        if isinstance(error, Gone):
            self._version, self._floor, self._streams = "", "", True
            longest = RELIST_SECONDS
        elif isinstance(error, Troubled):
            longest, asked_for = REFUSED_SECONDS if error.status == 429 else TROUBLED_SECONDS, error.retry_after
        elif isinstance(error, SourceUnavailable):
            longest = UNREACHABLE_SECONDS
        elif isinstance(error, Refused) and error.status == 404:
            self._version, longest = "", TROUBLED_SECONDS  # no longer served, perhaps: discovery will tell
        if self.is_synced and not isinstance(error, SourceUnavailable) and str(error) != str(self.failure):
            log.warning("%s; what was known stays", error)  # before the first list, who asked for it is told instead
        self.counts.errors += 1
        if not isinstance(error, Gone):
            self.failure, self.is_current = error, False
        pause = self._backoff.after_failure(longest, asked_for, random.random())
        self._notify()
        return pause

    def _worked(self) -> None:
        """We know what the API server knows."""
        if not self.is_current or self.failure is not None:
            self.is_current, self.failure = True, None
            self._notify()

    async def _sleep(self, seconds: float) -> None:
        self._hurry.clear()
        if seconds > 0:
            try:
                # Not asyncio.wait_for: before Python 3.12 a cancellation can get lost in it.
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    # Which version of the API

    @property
    def path(self) -> str | None:
        """Of the collection; None if the kind is absent, or not known yet to be there."""
        return None if self.api_version is None else f"{_api(self.api_version)}/{self.kind.plural}"

    async def _discover(self) -> str | None:
        """The first of the kind's API versions that is served; None if none is. Raises SourceError.

        Discovery is open to everybody who may log in, and says 404 of what is not there, where a list would say 403.
        """
        for api_version in self.kind.api_versions:
            if api_version == "v1":
                return api_version
            try:
                answer = await self._connection.request("discover", api_version, _api(api_version))
            except Refused as error:
                if error.status == 404:
                    continue
                raise
            resources = answer.get("resources") if isinstance(answer, dict) else None
            if any(isinstance(each, dict) and each.get("name") == self.kind.plural for each in resources or ()):
                return api_version
        return None

    def _absent(self, now: float) -> float:
        """None of its API versions is served; the seconds until the next look."""
        if self.api_version is not None:
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since < GONE_SECONDS:
                self.is_current = False
                return jittered(MISSING_SECONDS, random.random())
            log.warning("%s is no longer served by the API server: its objects are gone", self.kind.name)
        self.api_version, self._missing_since = None, None
        self._commit({}, "", 0)
        return jittered(ABSENT_SECONDS, random.random())

    # Listing

    async def _list(self) -> None:
        """All objects, in the place of those that were known. Raises SourceError."""
        try:
            if self._streams:
                return await self._list_as_watch()
        except Refused as error:
            if error.status not in (400, 422):
                raise
            self._streams = False  # this server does not know what we ask for
        try:
            await self._list_in_pages()
        except SourceUnavailable:
            self._streams = True
            raise

    async def _list_as_watch(self) -> None:
        query = WATCH | {
            "timeoutSeconds": str(LISTING_SECONDS),
            "sendInitialEvents": "true",
            "resourceVersionMatch": "NotOlderThan",
        }
        if self._floor:
            query["resourceVersion"] = self._floor
        staged: dict[Ref, Manifest] = {}
        size, loop = 0, asyncio.get_running_loop()
        async with self._connection.open("watch", self.kind.plural, f"{self.path}", query) as response:
            # Until it has ended well: a server that only seems to know this way of listing never comes to an end.
            self._streams = False
            async with asyncio.timeout(SILENCE_SECONDS) as silence:
                async for line in response.content:
                    self._connection.heard()
                    silence.reschedule(loop.time() + SILENCE_SECONDS)
                    size += len(line)
                    version, is_end = self._take_event(_parse(line), staged)
                    if is_end:
                        self._streams = True
                        return self._commit(staged, version, size)
        raise SourceUnavailable(f"cannot list {self.kind.plural}: the API server broke off")

    async def _list_in_pages(self) -> None:
        # Pages are read from etcd, and so as new as can be: a floor does not go with them.
        staged: dict[Ref, Manifest] = {}
        query, size = {"limit": str(PAGE_OBJECTS)}, 0
        while True:
            answer = await self._connection.request("list", self.kind.plural, f"{self.path}", query)
            try:
                for item in answer["items"] or ():
                    # Items of a list do not say what they are.
                    self._take({"apiVersion": self.api_version, "kind": self.kind.name, **item}, staged)
                    size += len(str(item))
                version, more = str(answer["metadata"]["resourceVersion"]), answer["metadata"].get("continue")
            except (LookupError, TypeError):
                raise SourceUnavailable(f"cannot list {self.kind.plural}: what the API server sent is no list") from None
            if not more:
                return self._commit(staged, version, size)
            query["continue"] = more

    def _commit(self, objects: dict[Ref, Manifest], version: str, size: int) -> None:
        """Take over a complete list of ``size`` bytes."""
        has_changed = objects != self.objects or not self.is_synced
        self.objects, self._version, self._floor = objects, version, version or "0"
        self._next_list = time.monotonic() + jittered(resync_seconds(size), random.random())
        self.counts.lists += 1
        self.is_synced = True
        # Failures are forgotten when a watch has lasted: lists that succeed and watches that do not would be a storm of lists.
        if has_changed:
            self._notify()
        self._worked()

    # Watching

    async def _watch(self) -> float:
        """Take over changes until the watch ends; the seconds to wait then. Raises SourceError."""
        seconds = int(jittered(WATCH_SECONDS, random.random()))
        query = WATCH | {"timeoutSeconds": str(seconds), "resourceVersion": self._version}
        began = time.monotonic()
        try:
            async with self._connection.open("watch", self.kind.plural, f"{self.path}", query) as response:
                self.counts.watches += 1
                self._worked()
                async with asyncio.timeout(seconds + SILENCE_SECONDS):
                    async for line in response.content:
                        self._connection.heard()
                        self._version, _ = self._take_event(_parse(line), self.objects)
        finally:
            is_short = time.monotonic() - began < SHORT_WATCH_SECONDS
            if not is_short:
                self._backoff.reset()
        return self._backoff.after_failure(TROUBLED_SECONDS, None, random.random()) if is_short else 0.0

    def _take_event(self, event: Mapping[str, Any], objects: dict[Ref, Manifest]) -> tuple[str, bool]:
        """Apply an event to ``objects``; the version it brings, and whether it ends the list. Raises SourceUnavailable."""
        what, manifest = event.get("type"), event.get("object")
        if not isinstance(manifest, dict):
            raise SourceUnavailable(f"cannot watch {self.kind.plural}: what the API server sent is no event")
        if what == "ERROR":
            raise self._error(manifest)
        version = _value(manifest, ("metadata", "resourceVersion"))
        if not isinstance(version, str) or not version:
            raise SourceUnavailable(f"cannot watch {self.kind.plural}: what the API server sent has no version")
        if what == "BOOKMARK":
            return version, INITIAL_EVENTS_END in (_value(manifest, ("metadata", "annotations")) or {})
        if what == "DELETED":
            self._drop(manifest, objects)
        else:
            self._take(manifest, objects)
        return version, False

    def _error(self, status: Mapping[str, Any]) -> SourceError:
        code, message = status.get("code"), " ".join(str(status.get("message")).split())
        if is_gone(code, message):
            return Gone(f"cannot watch {self.kind.plural}: {message}")
        if code == 403 or code == 401:
            return Refused(code, f"may not watch {self.kind.plural}: {message}")
        return Troubled(code if isinstance(code, int) else 500, f"cannot watch {self.kind.plural}: {message}", None)

    # Objects

    def _take(self, manifest: Manifest, objects: dict[Ref, Manifest]) -> None:
        """Put an object into ``objects``, trimmed; a malformed one as it was when it was last good, if it was."""
        name = _value(manifest, ("metadata", "name"))
        if not isinstance(name, str) or not name:
            raise SourceUnavailable(f"cannot watch {self.kind.plural}: what the API server sent has no name")
        ref = Ref(self.kind.name, name)
        known = self.objects.get(ref)
        complaint = malformation(manifest, self.kind)
        self._complain(ref, complaint, known is not None)
        taken = known if complaint else self._trim(manifest)
        if taken is None:
            return
        if taken == known:
            # The same object as before, and not just an equal one: those who look at it may see at a glance that it is known.
            taken = known
        objects[ref] = taken
        if objects is self.objects and taken is not known:
            self._notify()

    def _drop(self, manifest: Manifest, objects: dict[Ref, Manifest]) -> None:
        ref = Ref(self.kind.name, str(manifest["metadata"].get("name")))
        self._complaints.pop(ref, None)
        if objects.pop(ref, None) is not None and objects is self.objects:
            self._notify()

    def _complain(self, ref: Ref, complaint: str | None, is_known: bool) -> None:
        """Say what is wrong with an object, once; and that it is good again."""
        before = self._complaints.get(ref)
        if complaint == before:
            return
        if complaint is None:
            del self._complaints[ref]
            log.info("%s is good again", ref)
        else:
            self._complaints[ref] = complaint
            log.warning("%s: %s; %s", ref, complaint, "what it was before stays" if is_known else "it counts as absent")


def malformation(manifest: Manifest, kind: Kind) -> str | None:
    """What is wrong with an object; None if it is whole."""
    mappings: tuple[tuple[str, ...], ...] = (("spec",), ("metadata", "annotations"))
    for path in mappings:
        value = _value(manifest, path)
        if value is not None and not isinstance(value, dict):
            return f"{'.'.join(path)} is not a mapping"
    for path in kind.required:
        value = _value(manifest, path)
        if value is None or value == "":
            return f"lacks {'.'.join(path)}"
        if not isinstance(value, str):
            return f"{'.'.join(path)} is not a string"
    return None


def is_gone(code: object, message: str) -> bool:
    """Whether an error means that we know of a version that the API server does not know: too old, or not yet reached."""
    return code == 410 or "Too large resource version" in message


def resync_seconds(size: int) -> float:
    """How long a list of so many bytes is good for."""
    return RESYNC_SECONDS * max(1.0, size / RESYNC_BYTES) ** 2


def _value(manifest: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        if not isinstance(manifest, dict):
            return None
        manifest = manifest.get(step)
    return manifest


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        raise SourceUnavailable("what the API server sent is no JSON") from None
    if not isinstance(event, dict):
        raise SourceUnavailable("what the API server sent is no event")
    return event


def _api(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
