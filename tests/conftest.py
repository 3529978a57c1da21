"""Settings of the whole suite: repeatable hypothesis runs, and a thread count that no test leaves changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import fusedrnn as fr

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _same_thread_count() -> Iterator[None]:
    before = fr.get_num_threads()
    yield
    if fr.get_num_threads() != before:
        fr.set_num_threads(before)
