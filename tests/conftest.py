"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lstmopt.measure import lock, process, timing
from lstmopt.measure.fingerprint import available_cores

# Several tests at once on two cores: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def measured_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leaves out what makes a latency exact, and waits for nobody: beside another test none would be.

    Tests of measuring itself, whose files say so, get all of it.
    """
    with pytest.MonkeyPatch.context() as patched:
        if not request.path.name.startswith("test_measure"):
            for name, value in (("PROCESSES", (2, 2)), ("ATTEMPTS", 1), ("MORE", 1)):
                patched.setattr(timing, name, value)
            patched.setattr(lock, "SHARED", tmp_path_factory.getbasetemp())
            # Each process of the tests measures on a core of its own, and keeps no other from its work.
            turn = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
            cores = available_cores()
            patched.setattr(process, "available_cores", lambda: (*cores[turn:], *cores[:turn]))
            patched.setattr(process, "PRIORITY", 0)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread, as results of several differ in the last place."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
