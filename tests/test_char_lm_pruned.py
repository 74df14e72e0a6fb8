"""The pruned reference model keeps what its README promises: weights, and accuracy in the sparse ops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmopt.passes.formats import build_sparse
from lstmopt.passes.sparse_ops import sparse_places
from lstmopt.reference.char_lm import corpus, model_path
from lstmopt.rnn.files import load_model
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes import open_session, runtime
from lstmopt.runtimes.ops import available
from lstmopt.sparsity.formats import FORMATS
from lstmopt.tasks.base import degradation
from lstmopt.tasks.prepare import prepare

PRUNED = Path(__file__).parents[1] / "models" / "char_lm" / "pruned.onnx"
CHARACTERS = 40_000


def test_ten_times_fewer_weights_as_the_format_rounds_them() -> None:
    layers = [layer.weights for layer in find_rnns(load_model(PRUNED)) if layer.weights is not None]
    dense = [layer.weights for layer in find_rnns(load_model(model_path())) if layer.weights is not None]
    assert sum(w.parameters for w in dense) / sum(w.nonzero_parameters for w in layers) >= 10
    for weights in layers:
        for matrix in weights.matrices:
            assert np.array_equal(FORMATS["i8"].round_weights(matrix[0]), matrix[0])


@pytest.mark.deep
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_it_is_better_than_the_original_in_the_sparse_ops(name: str, tmp_path: Path) -> None:
    if not available(name):
        pytest.skip("the native ops were not built")
    text = corpus()
    if not text.pinned:
        pytest.skip("this Python's sources are not those that the model was trained on")
    original, pruned = load_model(model_path()), load_model(PRUNED)
    options = {"val": {"tokens": text.valid[:CHARACTERS]}, "test": None, "task": "lm", "seed": 0}
    prepared = prepare(original, data={"tokens": text.train[:CHARACTERS]}, **options)
    formats = {place.name: "i8" for place in sparse_places(pruned)}
    sparse = build_sparse(pruned, name, formats, "sparse-i8", 1, tmp_path / "sparse")
    dense = runtime("onnxruntime").build(model_path(), "f32", tmp_path / "dense")
    found = [prepared.task.evaluate(open_session(item, 1), prepared.splits.valid) for item in (dense, sparse)]
    assert degradation(*found, 0).value < 0
