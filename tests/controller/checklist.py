"""Felix's own tests of its WireGuard, as a list to be checked against (calico.md 9), by numbers.

``A.n`` is line n of its end-to-end tests (``felix/fv/wireguard_test.go``), ``B.n`` of its unit tests (``wireguard_test.go``),
``C.n`` of those of its start-up (``bootstrap_test.go``, in their order), ``D.n`` of metrics and static rules. A test of ours that
stands for some of them says so with :func:`line`. What is tested where such a test would be, or does not apply to us, stands in
the two tables below with the place or the reason. tests/controller/test_checklist.py sees to it that no line is missing and none
is in two places.
"""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

TOTALS = {"A": 22, "B": 70, "C": 15, "D": 2}

TESTED_AT = {
    "A.16": "tests/controller/test_agent.py::test_an_agent_that_finds_no_data_plane_waits_and_says_so_once",
    "A.17": "tests/controller/test_agent.py::test_an_agent_that_finds_no_data_plane_waits_and_says_so_once",
    "B.4": "tests/controller/test_netlink.py::test_the_monitor_tells_of_our_links_and_of_rules_only",
    "B.5": "tests/controller/test_netlink.py::test_the_monitor_tells_of_our_links_and_of_rules_only",
    "B.6": "tests/controller/test_publication.py::test_a_write_that_failed_is_not_waited_for",
    "B.59": "tests/controller/test_agent.py::test_an_agent_that_finds_no_data_plane_waits_and_says_so_once",
    "C.8": "tests/kube/test_outage.py::test_an_api_server_that_is_gone_costs_no_packet_and_changes_nothing",
    "D.1": "tests/controller/test_metrics.py::test_every_series_and_its_value",
}
"""Lines that the tests of the module in question check already."""

_NO_BOOTSTRAP = (
    "Felix starts with a device whose key nobody knows any more; our key is on disk, so that there is nothing to undo first"
)
_NO_TYPHA = "the agent asks the API server itself"

NOT_OURS = {
    "A.1": _NO_BOOTSTRAP,
    "A.5": "NAPI threading is a setting of the kernel's WireGuard; there is no such thing in a TUN",
    "A.9": "endpoint policies are Felix's, which goes on making them on our node",
    "A.10": "endpoint policies are Felix's, which goes on making them on our node",
    "A.11": "endpoint policies are Felix's, which goes on making them on our node",
    "A.12": "endpoint policies are Felix's, which goes on making them on our node",
    "A.13": "endpoint policies are Felix's, which goes on making them on our node",
    "B.68": "there always is a table: it has a default",
    "B.69": "there always is a table: it has a default",
    "B.70": "an IP version is one of two values of a type",
    "C.2": _NO_TYPHA,
    "C.3": _NO_TYPHA,
    "C.4": _NO_TYPHA,
    "C.7": "removal at start is for a device whose key is not known any more",
    "D.2": "the rules are Felix's",
}
"""Lines that have no meaning here, and why."""


def line(*numbers: str) -> Callable[[F], F]:
    """This test stands for these lines."""

    def mark(function: F) -> F:
        return function

    return mark
