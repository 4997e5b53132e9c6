"""A :class:`controller.source.Source` of an API server: one reflector for each kind of the mesh, and what a node writes.

The newest state is handed over, and only a whole one: as long as one kind has not been listed yet, nothing is. After that,
whatever happens to the API server or to the way there, what is known stays, and :meth:`KubernetesSource.health` tells its age.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from controller.kube.connection import Connection, Refused
from controller.kube.events import NAMESPACE, Events, manifest, series
from controller.kube.reflector import Counts, Reflector
from controller.mesh import Mesh
from controller.source import Event, Health, Manifest, Objects, Ref, SourceError, SourceUnavailable

log = logging.getLogger(__name__)

LIST_SECONDS = 30.0
"""How long :meth:`KubernetesSource.list` waits for an API server that does not answer."""

PATCH_ATTEMPTS = 5
PATCH_PAUSE_SECONDS = 0.05

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
EVENTS_PATH = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"


class KubernetesSource:
    """The objects of ``mesh``, from the API server of a kubeconfig (or of the pod we are in; see
    :class:`~controller.kube.connection.Connection`)."""

    def __init__(self, mesh: Mesh, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self._connection = Connection(kubeconfig, context)
        self.name = f"API server of {self._connection.origin}"
        self._reflectors = {kind.name: Reflector(self._connection, kind, mesh.trim, self._notice) for kind in mesh.kinds.values()}
        self._tasks: list[asyncio.Task[None]] = []
        self._noticed = asyncio.Event()
        self._objects: Objects = {}
        self._trouble = ""
        self._events = Events()

    # Health

    @property
    def counts(self) -> Mapping[str, Counts]:
        """What has been done so far, by kind."""
        return {name: reflector.counts for name, reflector in self._reflectors.items()}

    def health(self) -> Health:
        """In sync: every kind is followed, and none has failed since. At rest the API server says something each minute or so."""
        reflectors, is_current = self._reflectors.values(), self._is_current()
        failures = (str(each.failure) for each in reflectors if each.failure is not None)
        return Health(
            is_synced=is_current,
            heard_at=self._connection.heard_at,
            failure=None if is_current else next(failures, "not all objects have been sent yet"),
            lists=sum(each.counts.lists for each in reflectors),
            errors=sum(each.counts.errors for each in reflectors),
        )

    @property
    def absent(self) -> Sequence[str]:
        """The kinds this cluster does not serve (no CRD)."""
        reflectors = self._reflectors.items()
        return [name for name, reflector in reflectors if reflector.is_synced and reflector.api_version is None]

    # Reading

    async def list(self) -> Objects:
        """All objects, once all kinds have been listed.

        Raises SourceError as soon as the API server refuses one of them, and SourceUnavailable if it does not answer for half a
        minute. The attempts go on all the same: it may be called again. Malformed objects are left out, and the log says so:
        in a cluster one bad object must not stop the agents of all nodes.
        """
        self._start()
        for reflector in self._reflectors.values():
            reflector.hurry()
        deadline = time.monotonic() + LIST_SECONDS
        while not self._is_listed():
            for reflector in self._reflectors.values():
                if reflector.failure is not None and not isinstance(reflector.failure, SourceUnavailable):
                    raise _again(reflector.failure)
            await self._wait_until(deadline)
            if time.monotonic() >= deadline and not self._is_listed():
                raise self._silence()
        self._objects = self._gathered()
        return self._objects

    async def changed(self) -> Objects:
        self._start()
        while True:
            if self._is_listed():
                gathered = self._gathered()
                if gathered != self._objects:
                    self._objects = gathered
                    return gathered
            await self._wait_until(None)

    def locate(self, ref: Ref, path: Sequence[str | int]) -> str:
        return str(ref)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._connection.close()

    def _start(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors.values()]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._noticed.set())

    def _is_current(self) -> bool:
        return all(reflector.is_current for reflector in self._reflectors.values())

    def _is_listed(self) -> bool:
        return all(reflector.is_synced for reflector in self._reflectors.values())

    def _gathered(self) -> Objects:
        gathered = {}
        for reflector in self._reflectors.values():
            gathered.update(reflector.objects)
        return gathered

    async def _wait_until(self, deadline: float | None) -> None:
        """Wait for a reflector to notice something."""
        for task in self._tasks:
            if task.done():
                task.result()  # raises: none of them ends but by a mistake of ours
        try:
            async with asyncio.timeout(None if deadline is None else max(deadline - time.monotonic(), 0.0)):
                await self._noticed.wait()
        except TimeoutError:
            return
        self._noticed.clear()

    def _notice(self) -> None:
        self._noticed.set()
        troubles = [str(each.failure) for each in self._reflectors.values() if each.failure is not None and each.is_troubled]
        if troubles and not self._trouble:
            self._trouble = troubles[0]
            log.warning("%s; %swe go on trying", self._trouble, "what is known stays, and " if self._is_listed() else "")
        elif self._trouble and self._is_current():
            self._trouble = ""
            log.info("following the API server again")

    def _silence(self) -> SourceError:
        failures = (each.failure for each in self._reflectors.values() if each.failure is not None)
        failure = next(failures, SourceUnavailable("the API server has not sent all objects yet"))
        return _again(failure)

    # Writing

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        # The right to patch a Node's status is less than that to patch the Node, and enough for its annotations.
        subresource = "/status" if ref.kind == "Node" else ""
        reflector = self._reflectors[ref.kind]
        collection = "/api/v1/nodes" if ref.kind == "Node" else reflector.path
        if collection is None:
            raise SourceError(f"cannot annotate {ref}: the API server serves no {reflector.kind.plural}")
        resource = f"{reflector.kind.plural}{subresource}"
        path = f"{collection}/{ref.name}{subresource}"
        body = {"metadata": {"annotations": dict(annotations)}}
        for attempt in range(1, PATCH_ATTEMPTS + 1):
            try:
                await self._patch(f"{resource} of {ref.name}", path, body)
                return
            except Refused as error:
                if error.status == 404:
                    raise SourceError(f"cannot annotate {ref}: there is no such object") from None
                if error.status != 409 or attempt == PATCH_ATTEMPTS:
                    raise
            await asyncio.sleep(PATCH_PAUSE_SECONDS * attempt)

    async def merge_status(self, node: str, patch: Manifest) -> None:
        await self._patch(f"nodes/status of {node}", f"/api/v1/nodes/{node}/status", patch, STRATEGIC_MERGE_PATCH)

    async def tell(self, node: str, event: Event) -> None:
        name = f"{node[:200]}.{secrets.token_hex(8)}"
        write = self._events.tell(node, event, name, time.monotonic())
        if write is None:
            return
        now = datetime.now(UTC)
        try:
            if write.told == 1:
                await self._create_event(manifest(node, event, write.name, now))
            else:
                await self._patch("events.events.k8s.io", f"{EVENTS_PATH}/{write.name}", series(write.told, now))
        except SourceError as error:
            self._events.forget(node, event)
            if write.told > 1 and isinstance(error, Refused) and error.status == 404:
                await self.tell(node, event)  # it was kept for an hour, and is gone
                return
            raise

    async def _create_event(self, body: Mapping[str, object]) -> None:
        try:
            await self._connection.request("create", "events.events.k8s.io", EVENTS_PATH, method="POST", body=body)
        except Refused as error:
            if error.status != 409:  # there already: the first attempt has come through, and only its answer was lost
                raise

    async def _patch(self, resource: str, path: str, body: Mapping[str, object], content_type: str = MERGE_PATCH) -> None:
        await self._connection.request("patch", resource, path, method="PATCH", body=body, content_type=content_type)


def _again(error: SourceError) -> SourceError:
    """The same error, to be raised once more: one that is raised twice collects tracebacks."""
    return error.with_traceback(None)
