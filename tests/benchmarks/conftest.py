"""The tests of the benchmarks borrow from the end-to-end tests."""

import pytest

pytest.register_assert_rewrite("tests.e2e.lab", "tests.e2e.traffic")
