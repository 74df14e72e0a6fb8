"""The variance of a data set's outputs, of which one batch is there at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmopt.tasks.variance import Variance


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 50), max_size=12),
    offset=st.sampled_from([0.0, 1.0, -1e4]),
)
def test_it_is_that_of_all_arrays_together(seed: int, sizes: list[int], offset: float) -> None:
    rng = np.random.default_rng(seed)
    arrays = [offset * number + rng.standard_normal((size, 3)) for number, size in enumerate(sizes)]
    spread = Variance()
    for array in arrays:
        spread.add(array)
    whole = np.concatenate([array.reshape(-1) for array in arrays] or [np.zeros(0)])
    np.testing.assert_allclose(spread.variance, whole.var() if whole.size else 0.0, rtol=1e-9)


def test_constant_numbers_have_none() -> None:
    spread = Variance()
    for _ in range(3):
        spread.add(np.full((4, 2), 0.1))
    assert spread.variance == 0.0


def test_infinity_is_not_taken_for_a_constant() -> None:
    spread = Variance()
    spread.add(np.array([1.0, np.inf]))
    assert np.isnan(spread.variance)
