"""A pytest plugin: what a test may cost while the code under it is wrong.

Wrong code may loop for ever or eat all memory, and may make a Hypothesis test look long for the smallest example of a failure
that nobody will read. So a test has a number of seconds of CPU time (not of wall time: a busy machine must not be taken for an
endless loop) and a process a number of bytes, and Hypothesis tries the same examples each time and stops at the first that fails.
"""

import os
import resource
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

SECONDS = 15.0
BYTES = 3 << 30
EXIT_TIMEOUT = 36
"""What mutmut reads as a timeout."""

settings.register_profile(
    "mutants",
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def pytest_configure() -> None:
    settings.load_profile("mutants")
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    signal.signal(signal.SIGPROF, lambda number, frame: os._exit(EXIT_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
