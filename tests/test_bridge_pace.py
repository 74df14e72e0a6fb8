"""Training keeps to the number of threads in which its steps are fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmopt.bridge.pace import SETTLED, TRIALS, Pace
from lstmopt.passes import GrowPrune
from lstmopt.pipeline import Budget
from tests.training import language_model, state_for


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def after(pace: Pace, seconds: float, takes: Callable[[int], float]) -> list[int]:
    """Returns the threads of each step of some seconds of training."""
    found, spent = [], 0.0
    while spent < seconds:
        found.append(torch.get_num_threads())
        spent += takes(found[-1])
        pace.step(takes(found[-1]))
    return found


def test_one_thread_is_kept_where_several_wait_for_each_other() -> None:
    torch.set_num_threads(2)
    pace = Pace((2, 1))
    used = after(pace, 60, lambda count: 0.02 if count == 1 else 1.0)
    assert used[: 1 + 2 * TRIALS] == [2, 2, 2, 1, 1], "a first step, then each in turn"
    # A trial takes seconds here, so that it comes seldom: it is a twentieth of the time at most.
    assert used.count(1) > 20 * used.count(2)


def test_several_threads_come_back_when_the_cores_are_free() -> None:
    torch.set_num_threads(2)
    pace = Pace((2, 1))
    after(pace, SETTLED, lambda count: 0.1 if count == 1 else 0.5)
    assert torch.get_num_threads() == 1
    used = after(pace, 4 * SETTLED, lambda count: 0.1 if count == 1 else 0.05)
    assert torch.get_num_threads() == 2 and used[0] == 1


def test_where_there_is_one_thread_nothing_is_tried() -> None:
    torch.set_num_threads(1)
    assert set(after(Pace((1, 1)), 30, lambda count: 0.5)) == {1}


def test_budgets_of_time_are_paced_and_those_of_steps_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Pace | None] = []
    own = GrowPrune._pace

    def kept(*given: Any) -> Pace | None:
        made.append(own(*given))
        return made[-1]

    monkeypatch.setattr(GrowPrune, "_pace", kept)
    model = language_model(tmp_path)
    torch.set_num_threads(2)
    GrowPrune(density=0.5).run(state_for(model, tmp_path / "timed", budget=Budget(seconds=2)))
    assert torch.get_num_threads() == 2, "torch's setting is as it was"
    GrowPrune(density=0.5).run(state_for(model, tmp_path / "counted", budget=Budget(steps=5)))
    timed, counted = made
    assert timed is not None and set(timed._times) == {1, 2} and counted is None
