"""Layers in bodies of If, Loop and Scan: pruned in place, and run by the sparse ops there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lstmopt.errors import LstmoptError
from lstmopt.passes.export import Export
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.passes.plans import masked
from lstmopt.passes.simplify import Simplify
from lstmopt.passes.sparse_ops import RoundWeights, SparseOps, sparse_places
from lstmopt.passes.verify import Verify, verify_artifact
from lstmopt.pipeline import Pipeline
from lstmopt.report.golden import read_golden
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.files import save_model
from lstmopt.rnn.groups import unit_groups
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.surgery import resize
from lstmopt.rnn.writer import free_name, write_weights
from lstmopt.runtimes import open_session, runtime
from lstmopt.targets import RuntimeTarget, Target
from tests.bodies import CHUNK, HIDDEN, INPUT, behind_if, in_loop, in_scan, nested
from tests.training import state_for
from tests.written_out import FLOAT, Draft

MODELS = {
    "if": behind_if,
    "if, shared weights": lambda: behind_if(shared=True),
    "loop": in_loop,
    "loop, outer weights": lambda: in_loop(outer=True),
    "scan": in_scan,
    "scan, computed weights": lambda: in_scan(computed=True),
    "scan in an if": nested,
}
SWITCHES = ("if", "if, shared weights", "scan in an if")
"""Those that have an input ``flag``."""

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Inputs with so little in them that a part of the weights can do."""
    few = rng.standard_normal((*shape, 3)) @ np.random.default_rng(9).standard_normal((3, INPUT))
    return few.astype(np.float32)


def calls(model: ir.Model) -> list[dict[str, np.ndarray]]:
    """Inputs of several sizes, with both branches of an If."""
    found = []
    for seed, (batch, steps) in enumerate(((1, 3), (2, 5))):
        chunks = (CHUNK,) if len(model.graph.inputs[0].shape) == 4 else ()
        x = inputs(np.random.default_rng(100 + seed), steps, *chunks, batch)
        if len(model.graph.inputs) == 2:
            found += [{"x": x, "flag": np.array(flag)} for flag in (False, True)]
        else:
            found.append({"x": x})
    return found


def densities(model: ir.Model) -> dict[str, float]:
    layers = {layer.name: layer.weights for layer in find_rnns(model)}
    return {name: w.nonzero_parameters / w.parameters for name, w in layers.items() if w is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("item", ["f32", "i16", "i8"])
@pytest.mark.parametrize("where", ["onnxruntime", "openvino"])
def test_sparse_ops_in_bodies_compute_what_the_rounded_weights_do(name, item, where, tmp_path):
    model = MODELS[name]()
    cut = masked(model, "bank64:step4", 0.25)
    assert densities(cut) == pytest.approx(dict.fromkeys(densities(model), 0.25), abs=0.01)
    formats = dict.fromkeys((place.name for place in sparse_places(cut)), item)
    assert set(formats) == {layer.name for layer in find_rnns(model)}
    rounded, sparse = rewrite(cut, RoundWeights(formats)), rewrite(cut, SparseOps(formats))
    assert not any(node.op_type in ("LSTM", "GRU") for node in sparse.graph.all_nodes())
    onnx.checker.check_model(ir.to_proto(rounded), full_check=True)
    # Nothing of the dense weights is left behind, in no body.
    graphs = (sparse.graph, *sparse.graph.subgraphs())
    left = [v for graph in graphs for v in graph.initializers.values() if not v.uses()]
    assert not left
    save_model(sparse, tmp_path / "sparse.onnx")
    session = open_session(runtime(where).build(tmp_path / "sparse.onnx", f"sparse-{item}", tmp_path), 1)
    bound = {"f32": 1e-5, "i16": 4e-3, "i8": 4e-2}[item]
    for feeds in calls(model):
        want = run_model(rounded, feeds)["y"]
        error = np.sqrt(np.mean((session.run(feeds)["y"] - want) ** 2) / np.mean(want**2))
        assert error < bound
        assert np.abs(want - run_model(model, feeds)["y"]).max() > 0.01  # the masks did something


def without_shapes(model: ir.Model) -> ir.Model:
    """The model, whose bodies tell nothing but types of what they compute."""
    for body in model.graph.subgraphs():
        for value in (value for node in body for value in node.outputs):
            value.shape = None
    return model


def step_by_step(kind: str) -> ir.Model:
    """x [steps, 1, INPUT] through a sparse product and a Scan that hands the states of a sparse layer on."""
    rng, main, g = np.random.default_rng(6), Draft(), Draft("body_")
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    rows = HIDDEN * (4 if kind == "LSTM" else 3)

    def sparse(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) * (rng.random(shape) < 0.3) / 2

    before = main("MatMul", main("Abs", "x"), main.const(sparse(INPUT, INPUT)))
    names = [g.const(sparse(1, rows, size)) for size in (INPUT, HIDDEN)]
    given, made = [f"{state}_in" for state in states], [f"{state}_out" for state in states]
    x = g.axes("Unsqueeze", "step", [0])
    layer = helper.make_node(kind, [x, *names, "", "", *given], ["", *made], name="rnn", hidden_size=HIDDEN)
    g.nodes.append(layer)
    infos = [
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ends]
        for ends in ([*given, "step"], [*made, g.axes("Squeeze", "h_out", [0]), g("Abs", "step")])
    ]
    body = helper.make_graph(g.nodes, "body", *infos, g.tensors)
    zeros = [main.const(np.zeros((1, 1, HIDDEN))) for _ in states]
    outputs = [*(f"{state}_n" for state in states), "y", "z"]
    main.nodes.append(helper.make_node("Scan", [*zeros, before], outputs, body=body, num_scan_inputs=1))
    return main.model({"x": ["steps", 1, INPUT]}, {"y": ["steps", 1, HIDDEN], "z": ["steps", 1, INPUT]})


UNTOLD = {
    **{name: lambda make=make: without_shapes(make()) for name, make in MODELS.items()},
    "states of an LSTM": lambda: step_by_step("LSTM"),
    "states of a GRU": lambda: step_by_step("GRU"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_bodies_that_tell_no_shapes(name, tmp_path):
    model = masked(UNTOLD[name](), "unstructured", 0.3)
    formats = dict.fromkeys((place.name for place in sparse_places(model)), "f32")
    assert len(formats) == len(find_rnns(model)) + name.startswith("states")
    save_model(rewrite(model, SparseOps(formats)), tmp_path / "sparse.onnx")
    session = open_session(runtime("onnxruntime").build(tmp_path / "sparse.onnx", "sparse-f32", tmp_path), 1)
    for feeds in [{"x": inputs(np.random.default_rng(1), 5, 1)}] if name not in MODELS else calls(model):
        got = session.run(feeds)
        for output, array in run_model(model, feeds).items():
            np.testing.assert_allclose(got[output], array, atol=1e-5)


def test_shared_weights_are_shared_until_one_layer_changes():
    model = behind_if(shared=True)
    first, other = find_rnns(model)
    assert first.input(1) is other.input(1)
    write_weights(model, first, replace(first.weights, w=0 * first.weights.w))
    changed, kept = find_rnns(model)
    assert not changed.weights.w.any() and np.array_equal(kept.weights.w, first.weights.w)
    assert free_name(model.graph, "inner") == "inner_1", "a name of a body counts as taken"


@pytest.mark.parametrize("name", MODELS)
def test_sizes_of_layers_in_bodies_stay_and_the_line_says_why(name):
    model = MODELS[name]()
    groups = unit_groups(model)
    assert len(groups) == len(find_rnns(model))
    assert all(group.pinned is not None and "it is inside" in group.pinned for group in groups)
    assert ("lstmopt fix MODEL flag=VALUE" in str(groups[0].pinned)) == (name in SWITCHES)
    with pytest.raises(LstmoptError, match="is inside"):
        resize(model, {groups[0].layers[0]: 16})


def test_no_value_is_asked_for_where_the_data_decide():
    """`lstmopt fix` makes a model for one value of a switch, and x is none."""
    proto = ir.to_proto(behind_if(shared=True))
    (flag,) = (value for value in proto.graph.input if value.name == "flag")
    proto.graph.input.remove(flag)
    proto.graph.node.insert(0, helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0))
    proto.graph.node.insert(1, helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL))
    (group, *_) = unit_groups(ir.from_proto(proto))
    assert "it is inside" in str(group.pinned) and "lstmopt fix" not in str(group.pinned)


RECIPE = GrowPrune(density=0.3, steps=150, batch=8, mask_every=5, amp=False, pattern="unstructured")


def voices(name: str, flags: list[bool]) -> dict[str, np.ndarray]:
    """Training data: of an If a flag an example."""
    data = {"x": inputs(np.random.default_rng(0), 256, *((6,) if name.startswith("if") else (2, CHUNK)))}
    return {**data, "flag": np.resize(flags, 256)} if name in SWITCHES else data


def error(model: ir.Model, original: ir.Model) -> float:
    """The mean square error over some calls that training has not seen."""
    found = [
        (run_model(model, feeds)["y"] - run_model(original, feeds)["y"]) ** 2 for feeds in calls(original)
    ]
    return float(np.mean([each.mean() for each in found]))


@pytest.mark.parametrize("name", MODELS)
def test_layers_in_bodies_are_pruned_and_trained_in_place(name, tmp_path):
    model = MODELS[name]()
    after = RECIPE.run(state_for(model, tmp_path, data=voices(name, [True, False])))
    assert densities(after.model) == pytest.approx(dict.fromkeys(densities(model), 0.3), abs=0.05)
    assert error(after.model, model) < 0.7 * error(masked(model, "unstructured", 0.3), model)


def test_a_branch_that_few_calls_take_is_pruned(tmp_path):
    data = voices("if", [False] + 99 * [True])
    after = replace(RECIPE, steps=5, batch=1).run(state_for(behind_if(), tmp_path, data=data))
    assert densities(after.model) == pytest.approx(dict.fromkeys(densities(behind_if()), 0.3), abs=0.05)
    assert not any("no call" in note for note in after.notes)


@pytest.mark.parametrize("flag", [True, False])
def test_weights_that_a_reached_layer_shares_are_pruned(flag, tmp_path):
    model = behind_if(shared=True)
    after = replace(RECIPE, steps=20).run(state_for(model, tmp_path, data=voices("if", [flag])))
    assert densities(after.model) == pytest.approx(dict.fromkeys(densities(model), 0.3), abs=0.01)
    assert any("but it shares weights with a layer that is pruned" in note for note in after.notes)


def test_a_branch_that_no_training_call_takes_keeps_its_weights(tmp_path):
    model = behind_if()
    after = RECIPE.run(state_for(model, tmp_path, data=voices("if", [True])))
    (kept,) = (name for name, density in densities(after.model).items() if density == 1)
    assert any(kept in note and "no call of the training data reaches it" in note for note in after.notes)
    assert any(note.startswith("65% of all LSTM and GRU weights stay") for note in after.notes)
    (pruned,) = (density for name, density in densities(after.model).items() if name != kept)
    assert pruned == pytest.approx(0.3, abs=0.01)
    for feeds in calls(model):
        if not feeds["flag"]:
            np.testing.assert_array_equal(run_model(after.model, feeds)["y"], run_model(model, feeds)["y"])


@pytest.mark.deep
def test_an_artifact_of_a_model_with_a_switch(tmp_path):
    save_model(behind_if(), tmp_path / "model.onnx")
    target = Target(
        name="one", runtimes=(RuntimeTarget(runtime="onnxruntime", precisions=("f32", "sparse-i8")),)
    )
    chain = Pipeline(Simplify(), replace(RECIPE, density=0.2), Export(5), Verify())
    data = voices("if", [True, False])
    state = chain.run(
        tmp_path / "model.onnx", target=target, data=data, output=tmp_path / "out", max_degradation=5.0
    )
    assert densities(state.model) == pytest.approx(dict.fromkeys(densities(behind_if()), 0.2), abs=0.05)
    assert verify_artifact(tmp_path / "out").passed
    # A switch is one value without axes, and stays one in what is recorded.
    golden = read_golden(tmp_path / "out" / "golden.safetensors")
    assert golden.inputs[0]["flag"].shape == ()
    script = [sys.executable, str(tmp_path / "out" / "run.py"), "--iterations", "5"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
