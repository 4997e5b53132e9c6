"""What every test is owed, that those before it left nothing behind in the process; and what was measured, for the end."""

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.promises import Promises

FIGURES = pytest.StashKey[dict[str, str]]()

# How long an example takes says nothing: 200 ms pass while somebody else has the processor. What may not be slow is measured.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Who runs the tests in the background of a script has SIGINT ignored, and every process that they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges a promise can be run alone, where nothing disturbs it: ``make promises``."""
    for item in items:
        if "promises" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.promise)


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> dict[str, str]:
    """What was measured: a name, and the figure with its unit and its bound. Printed at the end of the run."""
    return request.config.stash.setdefault(FIGURES, {})


@pytest.fixture(scope="session")
def promises(figures: dict[str, str]) -> Promises:
    return Promises(figures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measured = config.stash.get(FIGURES, {})
    if measured:
        terminalreporter.section("figures")
    for name, figure in measured.items():
        terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A command silences loggers for the rest of its process, which here is everybody's."""
    before = {logger: (logger.level, logger.disabled) for logger in _loggers()}
    yield
    for logger in _loggers():
        level, disabled = before.get(logger, (logging.NOTSET, False))
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled = disabled


def _loggers() -> list[logging.Logger]:
    """All that there are by now. Others, in whose names only those below them were asked for, come to be when they are set."""
    named = logging.Logger.manager.loggerDict.values()
    return [logging.root, *(logger for logger in named if isinstance(logger, logging.Logger))]
