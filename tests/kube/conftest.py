"""What the tests on a real Kubernetes API share: one API server for all that leave it whole, one for each that breaks it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.controller.lab", "tests.kube.lab")

from tests.kube.lab import API_ADDRESS  # noqa: E402
from tests.kube.testbed import Testbed, is_built  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory needs the API server."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kube)


@pytest.fixture(scope="session")
def need_kube() -> None:
    """Skip where the API server is not built. ``WGPY_REQUIRE_KUBE`` makes that a failure: continuous integration sets it."""
    if is_built():
        return
    reason = "kube-apiserver, etcd and kubectl are not built: run bash .ci/setup-kube (some minutes, needs Go)"
    if os.environ.get("WGPY_REQUIRE_KUBE"):
        pytest.fail(f"{reason} (WGPY_REQUIRE_KUBE asks for them)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kube(need_kube: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """The API server that all tests share, with Calico's classic CRDs. Leave it whole, and take away what you have made."""
    with Testbed.start(tmp_path_factory.mktemp("kube"), addresses=[API_ADDRESS]) as testbed:
        testbed.install_calico_crds()
        yield testbed


@pytest.fixture
def private_kube(need_kube: None, tmp_path: Path) -> Iterator[Testbed]:
    """An API server of one's own, to be stopped, killed and compacted. No CRDs."""
    with Testbed.start(tmp_path / "kube") as testbed:
        yield testbed
