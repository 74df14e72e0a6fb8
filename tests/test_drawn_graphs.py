"""Random LSTM and GRU graphs through a file, reading, removal of dead units, and the bridge."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lstmopt.rnn.check import silence
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns
from tests.graphs import Drawn, feeds_for, lstm_graphs
from tests.test_bridge_graphs import check
from tests.test_rnn_resize import assert_same, carried, draw_order, keep_units

PARTS, OF_A_PART = 10, 100


def go_through(drawn: Drawn, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_model(drawn.model, Path(folder) / "drawn.onnx")
        dead = load_model(Path(folder) / "drawn.onnx")
    before = {layer.name: layer.weights for layer in find_rnns(drawn.model)}
    for layer in find_rnns(dead):
        assert layer.supported and layer.weights is not None and before[layer.name] is not None
        np.testing.assert_array_equal(layer.weights.w, before[layer.name].w)
        np.testing.assert_array_equal(layer.weights.r, before[layer.name].r)
    check(dead, feeds_for(dead, 6, 2, seed=1))
    analysis = analyse(dead)
    order = draw_order(analysis, data)
    plan = Plan(analysis, order)
    silence(dead, plan)
    small = keep_units(dead, order)
    sizes = {lane.layer: len(order[lane.base]) for lane in analysis.flow.lanes if lane.base in order}
    for layer in find_rnns(small):
        assert layer.weights.hidden_size == sizes.get(layer.name, layer.weights.hidden_size)
    for sequence, batch in ((4, 3), (7, 1)) if drawn.exact else ():
        feeds = feeds_for(dead, sequence, batch, seed=sequence)
        expected = carried(dead, plan, run_model(dead, feeds))
        smaller = {k: v.astype(feeds[k].dtype) for k, v in carried(dead, plan, feeds).items()}
        assert_same(run_model(small, smaller), expected, drawn)
        if batch > 1:
            check(small, smaller)


@pytest.mark.parametrize("part", [0, *(pytest.param(p, marks=pytest.mark.deep) for p in range(1, PARTS))])
def test_drawn_graphs_are_read_cut_and_bridged(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=OF_A_PART, deadline=None, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(lstm_graphs(), st.data())
    def go(drawn: Drawn, data: st.DataObject) -> None:
        go_through(drawn, data)

    go()
