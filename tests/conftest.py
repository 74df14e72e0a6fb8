"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Several tests at once on two cores: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread, as results of several differ in the last place."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
