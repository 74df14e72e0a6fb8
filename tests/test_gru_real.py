"""A GRU model that others published: dead units go without a trace, and the sparse ops compute it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmopt.passes.plans import masked
from lstmopt.passes.simplify import simplify
from lstmopt.passes.sparse_ops import RoundWeights, SparseOps, sparse_places
from lstmopt.rnn.check import silence
from lstmopt.rnn.examples import example_inputs, sizes_for
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.groups import analyse
from lstmopt.rnn.plan import Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.runtimes import open_session, runtime
from lstmopt.sparsity.formats import FORMATS
from tests.ops import error, needs_ops
from tests.real_models import nsnet2
from tests.test_rnn_resize import keep_units

pytestmark = [needs_ops, pytest.mark.deep]


def test_nsnet2(tmp_path: Path) -> None:
    model, _ = simplify(load_model(nsnet2()))
    feeds = example_inputs(model, 0, sizes_for(model, 2, 20))
    dead = model.clone()
    analysis, rng = analyse(dead), np.random.default_rng(0)
    assert [(group.hidden_size, group.pinned) for group in analysis.groups] == [(400, None), (400, None)]
    order = {lane.base: np.sort(rng.permutation(400)[:200]) for lane in analysis.flow.lanes}
    silence(dead, Plan(analysis, order))
    small = keep_units(dead, order)
    assert [layer.weights.hidden_size for layer in find_rnns(small)] == [200, 200]
    for name, want in run_model(dead, feeds).items():
        np.testing.assert_allclose(run_model(small, feeds)[name], want, atol=1e-6)
    cut = masked(model, "bank64:step4", 0.25)
    for item in ("f32", "i8"):
        formats = {place.name: item for place in sparse_places(cut)}
        assert len(formats) == 2
        expected = run_model(rewrite(cut, RoundWeights(formats)), feeds)
        save_model(rewrite(cut, SparseOps(formats)), tmp_path / "sparse.onnx")
        for engine in ("openvino", "onnxruntime"):
            made = runtime(engine).build(tmp_path / "sparse.onnx", f"sparse-{item}", tmp_path / engine / item)
            for name, got in open_session(made, 1).run(feeds).items():
                assert error(got, expected[name]) < 3 * FORMATS[item].error
