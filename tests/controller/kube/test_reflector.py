"""One kind of object, from a scripted API server: listed, watched, taken up, listed again; and what is no object at all."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import reflector
from controller.kube.connection import Connection
from controller.kube.reflector import Reflector, malformation, resync_seconds
from controller.mesh import Kind
from controller.source import Manifest, Ref
from tests.controller.kube.scripted import Answer, Scripted, end_of_list, error, event, gives, hangs, says, sends

PATH = "/api/v1/nodes"
NODE = Kind("Node", "nodes", ("v1",))
POOL = Kind("IPPool", "ippools", ("a.example/v1", "b.example/v1"), required=(("spec", "cidr"),))


class Lab:
    """A reflector that runs."""

    def __init__(self, api: Scripted, kubeconfig: Path, kind: Kind) -> None:
        self.api = api
        self.notices = 0
        self.connection = Connection(kubeconfig)
        self.reflector = Reflector(self.connection, kind, trim, self._notice)
        self.task: asyncio.Task[None] | None = None

    def _notice(self) -> None:
        self.notices += 1

    def run(self, *answers: Answer) -> None:
        self.api.on(PATH, *answers)
        self.task = asyncio.create_task(self.reflector.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert self.task is not None and not self.task.done()
                await asyncio.sleep(0.005)

    async def sees(self, *names: str) -> None:
        await self.until(lambda: {ref.name for ref in self.reflector.objects} == set(names) and self.reflector.is_synced)

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.connection.close()


def trim(manifest: Manifest) -> Manifest:
    return {
        "name": manifest["metadata"]["name"],
        "annotations": manifest["metadata"].get("annotations"),
        "spec": manifest.get("spec"),
    }


@pytest.fixture
async def lab(api: Scripted, tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(api, api.kubeconfig(tmp_path), NODE)
    yield lab
    await lab.close()


@pytest.fixture
async def pools(api: Scripted, tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(api, api.kubeconfig(tmp_path), POOL)
    yield lab
    await lab.close()


def listed(*names: str, version: int = 10) -> Answer:
    return sends(*(event("ADDED", name, number) for number, name in enumerate(names, 1)), end_of_list(version))


STILL = sends(then="hangs")


async def test_a_list_is_handed_over_whole_or_not_at_all(lab: Lab) -> None:
    half = sends(event("ADDED", "n1", 1), then="hangs")
    lab.run(half)

    await lab.until(lambda: bool(lab.api.asked))
    await asyncio.sleep(0.05)

    assert not lab.reflector.is_synced and not lab.reflector.objects and not lab.notices
    assert lab.api.asked[0][2]["sendInitialEvents"] == "true" and lab.api.asked[0][2]["resourceVersion"] == "0"


async def test_it_watches_on_from_where_the_list_ends(lab: Lab) -> None:
    changes = sends(event("ADDED", "n3", 11), event("DELETED", "n1", 12), event("MODIFIED", "n2", 13, spec={"a": 1}))
    lab.run(listed("n1", "n2"), changes, STILL)

    await lab.sees("n2", "n3")
    await lab.until(lambda: lab.api.count(PATH) == 3)

    assert lab.reflector.objects[Ref("Node", "n2")]["spec"] == {"a": 1}
    versions = [query["resourceVersion"] for _, _, query in lab.api.asked]
    assert versions == ["0", "10", "13"]


async def test_a_bookmark_is_a_version_to_go_on_from(lab: Lab) -> None:
    lab.run(listed("n1"), sends({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "99"}}}), STILL)

    await lab.until(lambda: lab.api.count(PATH) == 3)

    assert lab.api.asked[2][2]["resourceVersion"] == "99"


async def test_what_looks_the_same_wakes_nobody_and_stays_the_same_object(lab: Lab) -> None:
    labelled = event("MODIFIED", "n1", 11, status={"images": ["much"]})
    lab.run(listed("n1"), sends(labelled, then="hangs"))
    await lab.sees("n1")
    before, notices = lab.reflector.objects[Ref("Node", "n1")], lab.notices

    await lab.until(lambda: lab.reflector._version == "11")

    assert lab.notices == notices
    assert lab.reflector.objects[Ref("Node", "n1")] is before


@pytest.mark.parametrize("in_stream", [True, False])
async def test_a_version_that_is_gone_means_listing_anew_and_as_new_as_can_be(lab: Lab, in_stream: bool) -> None:
    gone = sends(error(410, "too old resource version")) if in_stream else says(410, "Expired")
    lab.run(listed("n1"), gone, listed("n2", version=50), STILL)

    await lab.sees("n2")

    anew = lab.api.asked[2][2]
    assert anew["sendInitialEvents"] == "true" and "resourceVersion" not in anew


async def test_while_it_is_listed_anew_what_was_known_stays(lab: Lab) -> None:
    lab.run(listed("n1"), sends(error(410, "too old")), sends(event("ADDED", "n2", 11), then="hangs"))

    await lab.until(lambda: lab.api.count(PATH) == 3)
    await asyncio.sleep(0.05)

    assert set(lab.reflector.objects) == {Ref("Node", "n1")}


@pytest.mark.parametrize(
    "fault",
    [
        sends(b'{"type": "MODIFIED", "object": {"meta', then="cut"),
        sends(b"<html>\n"),
        sends(b"[" * 100_000 + b"\n"),
        sends(b"3\n"),
        sends({"type": "MODIFIED"}),
        sends({"type": "MODIFIED", "object": {"metadata": {}}}),
        sends({"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "11"}}}),
        sends(error(500, "trouble")),
        says(503, "starting"),
        says(429, "too many", Retry_After="0"),
    ],
)
async def test_a_watch_that_goes_wrong_is_taken_up_where_it_was(lab: Lab, fault: Answer) -> None:
    lab.run(listed("n1"), fault, sends(event("ADDED", "n2", 11), then="hangs"))

    await lab.sees("n1", "n2")

    assert lab.api.asked[2][2]["resourceVersion"] == "10"
    assert lab.reflector.counts.errors == 1 and lab.reflector.counts.lists == 1
    assert lab.reflector.is_current and lab.reflector.failure is None


async def test_a_server_that_knows_no_lists_by_watching_is_asked_for_pages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"metadata": {"resourceVersion": "9", "continue": "more"}, "items": [{"metadata": {"name": "n1"}}]}
    two = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "n2"}}]}
    lab.run(says(422, "sendInitialEvents is forbidden"), gives(one), gives(two), STILL)

    await lab.sees("n1", "n2")
    await lab.until(lambda: lab.api.count(PATH) == 4)

    assert lab.api.asked[2][2] == {"limit": str(reflector.PAGE_OBJECTS), "continue": "more"}
    assert lab.api.asked[3][2]["resourceVersion"] == "9"
    assert lab.reflector.counts.errors == 0


async def test_a_server_that_ignores_what_it_is_asked_for_is_asked_for_pages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "SILENCE_SECONDS", 0.1)
    page = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "n1"}}]}
    lab.run(sends(event("ADDED", "n1", 3), then="hangs"), gives(page), STILL)

    await lab.sees("n1")


async def test_a_page_that_is_none_is_worth_trying_again(lab: Lab) -> None:
    lab.run(says(400, "what?"), gives({"items": 3}), listed("n1"), STILL)

    await lab.sees("n1")


async def test_a_watch_that_hangs_beyond_its_end_is_taken_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(reflector, "SILENCE_SECONDS", 0.1)
    lab.run(listed("n1"), STILL, sends(event("ADDED", "n2", 11), then="hangs"))

    await lab.sees("n1", "n2")


async def test_watches_that_end_at_once_are_taken_up_ever_more_slowly(lab: Lab) -> None:
    lab.run(listed("n1"), sends())
    await lab.until(lambda: lab.api.count(PATH) >= 3)

    await asyncio.sleep(1.0)

    assert lab.api.count(PATH) <= 6
    assert lab.reflector.is_current


async def test_listing_anew_from_time_to_time_asks_for_nothing_older(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RESYNC_SECONDS", 0.0)
    lab.run(listed("n1"), listed("n1", "n2", version=20), listed("n2", version=30), STILL)

    await lab.sees("n2")

    assert [query["resourceVersion"] for _, _, query in lab.api.asked][:3] == ["0", "10", "20"]


async def test_a_database_that_was_set_back_is_believed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "RESYNC_SECONDS", 0.0)
    future = sends(error(504, "Too large resource version: 10, current: 5"))
    lab.run(listed("n1"), future, listed("old", version=5), STILL)

    await lab.sees("old")

    assert "resourceVersion" not in lab.api.asked[2][2]


# Which kinds there are


def serves(*plurals: str) -> Answer:
    return gives({"resources": [{"name": plural} for plural in plurals]})


A, B = "/apis/a.example/v1", "/apis/b.example/v1"


async def test_the_first_version_that_serves_the_kind_is_read(pools: Lab) -> None:
    pools.api.on(A, serves("others", "ippools/status"))
    pools.api.on(B, serves("ippools"))
    pools.api.on(f"{B}/ippools", sends(event("ADDED", "p", 1, spec={"cidr": "10.0.0.0/8"}), end_of_list(2)), STILL)
    pools.run(STILL)

    await pools.sees("p")

    assert pools.reflector.api_version == "b.example/v1"
    assert pools.reflector.path == f"{B}/ippools"


async def test_a_kind_that_is_not_served_is_absent_and_no_failure(pools: Lab) -> None:
    pools.run(STILL)

    await pools.until(lambda: pools.reflector.is_synced)

    assert pools.reflector.api_version is None and pools.reflector.path is None
    assert pools.reflector.is_current and pools.reflector.failure is None
    assert pools.reflector.counts.errors == 0


@pytest.mark.parametrize(("answer", "said"), [(says(403, "no"), "may not discover"), (says(503, "no"), "cannot discover")])
async def test_a_kind_of_which_nothing_can_be_said_is_not_absent(pools: Lab, answer: Answer, said: str) -> None:
    pools.api.on(A, answer)
    pools.run(STILL)

    await pools.until(lambda: pools.reflector.failure is not None)

    assert said in str(pools.reflector.failure)
    assert not pools.reflector.is_synced


async def test_a_kind_that_vanishes_is_gone_only_after_a_while(pools: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "MISSING_SECONDS", 0.05)
    monkeypatch.setattr(reflector, "GONE_SECONDS", 0.3)
    pools.api.on(A, serves("ippools"), says(404, "starting"), serves("ippools"), says(404, "gone"))
    of_pool = sends(event("ADDED", "p", 1, spec={"cidr": "10.0.0.0/8"}), end_of_list(2))
    pools.api.on(f"{A}/ippools", of_pool, says(404, "starting"), of_pool, says(404, "gone"))
    pools.run(STILL)
    await pools.sees("p")

    await pools.until(lambda: pools.api.count(A) >= 3)
    assert set(pools.reflector.objects) == {Ref("IPPool", "p")}, "an API server that starts does not serve everything yet"
    await pools.sees()
    assert pools.reflector.is_current


# Objects


async def test_an_object_that_goes_bad_stays_as_it_was(pools: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="controller.kube")  # which a command before may have silenced
    pools.api.on(A, serves("ippools"))
    good, bad = event("MODIFIED", "p", 3, spec={"cidr": "10.0.0.0/8"}), event("MODIFIED", "p", 4, spec={})
    more = event("ADDED", "q", 6, spec={"cidr": "10.1.0.0/16"})
    again = event("MODIFIED", "p", 7, spec={"cidr": "10.2.0.0/16"})
    meanwhile = asyncio.Event()

    async def then_good(request: web.Request) -> web.StreamResponse:
        await meanwhile.wait()
        return await sends(again, then="hangs")(request)

    pools.api.on(f"{A}/ippools", sends(good, end_of_list(3)), sends(bad, bad, more), then_good)
    pools.run(STILL)

    await pools.sees("p", "q")
    assert pools.reflector.objects[Ref("IPPool", "p")]["spec"] == {"cidr": "10.0.0.0/8"}
    meanwhile.set()
    await pools.until(lambda: pools.reflector._version == "7")

    assert [record.getMessage() for record in caplog.records if record.name.startswith("controller")] == [
        "IPPool p: lacks spec.cidr; what it was before stays",
        "IPPool p is good again",
    ]
    assert pools.reflector.objects[Ref("IPPool", "p")]["spec"] == {"cidr": "10.2.0.0/16"}


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ({"metadata": {}, "spec": {"cidr": "10.0.0.0/8"}}, None),
        ({"metadata": {"annotations": None}, "spec": {"cidr": "x"}}, None),
        ({"metadata": {"annotations": []}, "spec": {"cidr": "x"}}, "metadata.annotations is not a mapping"),
        ({"metadata": {}, "spec": "x"}, "spec is not a mapping"),
        ({"metadata": {}}, "lacks spec.cidr"),
        ({"metadata": {}, "spec": {"cidr": ""}}, "lacks spec.cidr"),
        ({"metadata": {}, "spec": {"cidr": 12}}, "spec.cidr is not a string"),
    ],
)
def test_what_is_wrong_with_an_object(manifest: dict[str, Any], complaint: str | None) -> None:
    assert malformation(manifest, POOL) == complaint


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_nothing_is_so_odd_that_it_cannot_be_complained_about(value: Any) -> None:
    malformation({"metadata": value, "spec": value}, POOL)


def test_a_list_is_renewed_the_less_often_the_larger_it_is() -> None:
    assert resync_seconds(0) == resync_seconds(2_000_000) == 90
    assert resync_seconds(14_000_000) > 3600
    assert resync_seconds(70_000_000) > 86_400


async def test_hanging_lists_are_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.kube.connection.ANSWER_SECONDS", 0.1)
    lab.run(hangs, hangs, listed("n1"))  # and again, as that, too, may take longer than a tenth of a second

    await lab.sees("n1")
