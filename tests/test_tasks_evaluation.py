"""Evaluations are kept and read again as they were; what is damaged counts as not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmopt.tasks.base import Evaluation, degradation, load_evaluation, save_evaluation


@pytest.mark.parametrize(("scale", "agreement"), [(None, None), (0.5, 0.75)])
def test_a_kept_evaluation_is_the_same(tmp_path: Path, scale: float | None, agreement: float | None) -> None:
    rng = np.random.default_rng(0)
    first = Evaluation(rng.random(20), np.full(20, 500.0), 3.25, scale, agreement)
    path = tmp_path / "kept" / "e.safetensors"
    assert load_evaluation(path) is None
    save_evaluation(path, first)
    again = load_evaluation(path)
    assert again is not None
    assert (again.metric, again.scale, again.agreement) == (3.25, scale, agreement)
    np.testing.assert_array_equal(again.losses, first.losses)
    assert degradation(first, first).value == degradation(first, again).value
    path.write_bytes(path.read_bytes()[:40])
    assert load_evaluation(path) is None
