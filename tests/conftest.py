"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.quick import measure_once

# Several tests at once on two cores: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def measured_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests of measuring itself, whose files say so, measure as users do; all others once."""
    with pytest.MonkeyPatch.context() as patched:
        if not request.path.name.startswith("test_measure"):
            measure_once(patched, tmp_path_factory.getbasetemp())
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread, as results of several differ in the last place."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
