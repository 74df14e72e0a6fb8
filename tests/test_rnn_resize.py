"""Adding units leaves the function as it is, on random graphs; `test_drawn_graphs` removes dead ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lstmopt.errors import LstmoptError
from lstmopt.rnn.check import _agree
from lstmopt.rnn.execution import run_model
from lstmopt.rnn.groups import analyse, unit_groups
from lstmopt.rnn.plan import NEW, Plan
from lstmopt.rnn.reader import find_rnns
from lstmopt.rnn.surgery import carry_out, resize
from tests.graphs import Drawn, feeds_for, lstm_graphs

SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def carried(model: ir.Model, plan: Plan, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the kept units out of states, layer by layer, from what the generator says of their layout."""
    layers = {layer.name: layer for layer in find_rnns(model)}
    out = dict(arrays)
    for name, array in arrays.items():
        if name in ("state", "state_out"):
            pieces, row = [], 0
            for layer in layers.values():
                for _ in layer.weights.cell.states:
                    for lane in (lane for lane in plan.analysis.flow.lanes if lane.layer == layer.name):
                        pieces.append(placed(array[row], plan.order.get(lane.base, np.arange(lane.size))))
                        row += 1
            out[name] = np.stack(pieces)
        elif name[0] in "hc" and name[1].isdigit():
            lanes = [lane for lane in plan.analysis.flow.lanes if lane.layer == f"lstm{name[1]}"]
            out[name] = np.stack(
                [
                    placed(array[i], plan.order.get(lane.base, np.arange(lane.size)))
                    for i, lane in enumerate(lanes)
                ]
            )
    return out


def placed(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Takes units in an order along the last axis; NaN where one is new."""
    return np.where(order == NEW, np.nan, array[..., np.maximum(order, 0)])


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: object) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, (name, what)
        known = ~np.isnan(array)
        scale = np.abs(array[known]).max(initial=1e-3)
        assert np.abs(got[name] - array)[known].max(initial=0) <= 1e-5 * scale, (name, what)


def draw_order(analysis: object, data: st.DataObject) -> dict[int, np.ndarray]:
    """Draws which units every free group keeps: the number per group, the units per bundle."""
    order = {}
    for group in analysis.groups:
        if group.pinned is None:
            count = data.draw(st.integers(1, group.hidden_size))
            for bundle in group.bundles:
                units = data.draw(st.permutations(range(group.hidden_size)))[:count]
                order |= {lane.base: np.sort(np.array(units)) for lane in bundle}
    return order


def keep_units(model: ir.Model, order: dict[int, np.ndarray]) -> ir.Model:
    """Returns a copy of a model with the units of each lane that are named, and no others."""
    copy = model.clone()
    carry_out(copy, Plan(analyse(copy), order), np.random.default_rng(0))
    return copy


@settings(max_examples=25, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_added_units_leave_the_function(drawn: Drawn, data: st.DataObject) -> None:
    add_units(drawn, data)


@pytest.mark.deep
@settings(max_examples=200, **SETTINGS)
@given(lstm_graphs(), st.data())
def test_added_units_leave_the_function_on_many_graphs(drawn: Drawn, data: st.DataObject) -> None:
    add_units(drawn, data)


def add_units(drawn: Drawn, data: st.DataObject) -> None:
    analysis = analyse(drawn.model)
    order, sizes = {}, {}
    for group in analysis.groups:
        if group.pinned is None and group.exact:
            more = data.draw(st.integers(0, 3))
            sizes[group.layers[0]] = group.hidden_size + more
            for bundle in group.bundles:
                order |= {lane.base: np.r_[: lane.size, [NEW] * more].astype(int) for lane in bundle}
    plan = Plan(analysis, order)
    try:
        large = resize(drawn.model, sizes, seed=3)
    except LstmoptError as error:
        # Picking single units (a permutation, a cut in the middle) is refused, not guessed.
        assert any(word in str(error) for word in ("picks single", "unequal parts")), (error, drawn)
        return
    feeds = feeds_for(drawn.model, 5, 2, seed=1)
    expected = carried(drawn.model, plan, run_model(drawn.model, feeds))
    filled = {name: np.nan_to_num(array) for name, array in carried(drawn.model, plan, feeds).items()}
    filled = {name: array.astype(feeds[name].dtype) for name, array in filled.items()}
    assert_same(run_model(large.model, filled), expected, drawn)


@settings(max_examples=40, **SETTINGS)
@given(lstm_graphs())
def test_groups_are_free_unless_something_holds_them(drawn: Drawn) -> None:
    groups = unit_groups(drawn.model)
    assert sorted(name for group in groups for name in group.layers) == sorted(drawn.layers)
    pinned = [group.pinned for group in groups if group.pinned]
    assert bool(pinned) == (not drawn.free), (drawn, pinned)
    assert all(group.exact for group in groups) == drawn.exact or pinned


@settings(max_examples=20, **SETTINGS)
@given(lstm_graphs())
def test_a_pinned_layer_is_refused_and_named(drawn: Drawn) -> None:
    for group in unit_groups(drawn.model):
        if group.pinned:
            with pytest.raises(LstmoptError, match="cannot be resized"):
                resize(drawn.model, {group.layers[0]: 2})


def older(nodes: list[onnx.NodeProto], opset: int, head: np.ndarray) -> ir.Model:
    """An LSTM of 8 units, of which the last 4 are read by nobody, and what an old opset does with it."""
    rng = np.random.default_rng(0)
    r = rng.standard_normal((1, 32, 8)).astype(np.float32)
    r[..., 4:] = 0
    tensors = {"W": rng.standard_normal((1, 32, 3)).astype(np.float32), "R": r, "head": head}
    lstm = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=8, name="l")
    squeeze = helper.make_node("Squeeze", ["y"], ["s"], axes=[1])
    graph = helper.make_graph(
        [lstm, squeeze, *nodes],
        "older",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["seq", "batch", 3])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def test_a_softmax_that_flattens_pins_units() -> None:
    nodes = [
        helper.make_node("Softmax", ["s"], ["p"], axis=1),
        helper.make_node("MatMul", ["p", "head"], ["o"]),
    ]
    head = np.ones((8, 5), np.float32)
    with pytest.raises(LstmoptError, match="read by Softmax"):
        resize(older(nodes, 11, head), {"l": 4})


def test_labels_have_to_stay_the_same() -> None:
    labels = np.arange(200)
    known = np.ones(200, np.bool_)
    one, many = labels.copy(), labels.copy()
    one[0], many[:9] = 7, 0
    assert _agree(one, labels, known) and not _agree(many, labels, known)


@pytest.mark.parametrize(("axis", "bounds"), [(0, (-1, 2**31 - 1)), (2, (0, 8)), (2, (1, 5))])
def test_a_slice_with_attributes_is_followed(axis: int, bounds: tuple[int, int]) -> None:
    cut = helper.make_node("Slice", ["s"], ["e"], axes=[axis], starts=[bounds[0]], ends=[bounds[1]])
    rows = 4 if bounds == (1, 5) else 8
    head = np.random.default_rng(1).standard_normal((rows, 5)).astype(np.float32)
    model = older([cut, helper.make_node("MatMul", ["e", "head"], ["o"])], 9, head)
    result = resize(model, {"l": 6})
    assert result.after == {"l": 6}
    x = np.zeros((3, 2, 3), np.float32)
    assert run_model(result.model, {"x": x})["o"].shape == run_model(model, {"x": x})["o"].shape
