"""Helpers whose assertions are shown as those of tests."""

import pytest

pytest.register_assert_rewrite("tests.controller.lab")
