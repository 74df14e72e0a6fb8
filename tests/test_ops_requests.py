"""The ops under load and under inputs that do not fit: several requests, streams and threads; `evaluate`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmopt.sparsity.formats import format_named
from tests.ops import (
    Array,
    feeds,
    needs_ops,
    ort_session,
    ov_compile,
    ov_core,
    ov_run,
    random_layer,
    save_product,
    save_sparse,
)

pytestmark = needs_ops

LENGTHS = (1, 5, 9, 20, 2, 33, 1, 14)
"""Of the sequences, one call after the other: shapes change at every call."""

GROWTH = 8.0
"""MiB that a process may grow by after its first quarter of the calls: an allocator never stands still."""


def layer_file(folder: Path, name: str, threads: int = 1) -> Path:
    rng, item = np.random.default_rng(11), format_named(name)
    weights = random_layer(rng, item, hidden=100, inputs=60, plain=True)
    return save_sparse(folder / "sparse.onnx", weights, item, states=True, threads=threads)


def sequences() -> list[dict[str, Array]]:
    rng = np.random.default_rng(12)
    weights = random_layer(rng, hidden=100, inputs=60, plain=True)
    return [feeds(rng, weights, steps, 1 + steps % 3) for steps in LENGTHS]


def order(call: int) -> int:
    """Returns which of the sequences a call runs: each of eight requests sees another one every time."""
    return (call + call // 8) % len(LENGTHS)


def same(have: Sequence[Array], want: Sequence[Array]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(have, want, strict=True))


def resident() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def check_streams(path: Path, calls: int) -> float:
    """Eight requests on two streams of OpenVINO; returns how much memory grew, in MiB.

    Without an AsyncInferQueue's callback: OpenVINO 2026.4 may wait for ever when such a model is let go,
    holding the lock of Python that its own thread waits for. And without a call that shares its inputs:
    other requests wrote into the arrays of the last one, with OpenVINO's own LSTM too.
    """
    compiled, given = ov_compile(path, NUM_STREAMS="2", INFERENCE_NUM_THREADS="4"), sequences()
    requests, wrong, before = [compiled.create_infer_request() for _ in range(8)], 0, 0

    def outputs(request: Any) -> list[Array]:
        return [request.get_output_tensor(number).data for number in range(3)]

    want = []
    for each in given:
        requests[0].infer(each, share_inputs=False)
        want.append([np.array(output) for output in outputs(requests[0])])
    for call in range(calls + len(requests)):
        request, last = requests[call % len(requests)], call - len(requests)
        if last >= 0:
            request.wait()
            wrong += not same(outputs(request), want[order(last)])
        if call == calls // 4:
            before = resident()
        if call < calls:
            request.start_async(given[order(call)], share_inputs=False)
    assert not wrong
    return (resident() - before) / 2**20


def check_threads(path: Path, calls: int) -> float:
    """Two threads on one session of ONNX Runtime; returns how much memory grew, in MiB."""
    session, given = ort_session(path), sequences()
    want = [session.run(None, each) for each in given]
    wrong: list[int] = []
    failures: list[BaseException] = []

    def work(first: int, count: int) -> None:
        try:
            for call in range(first, first + count):
                if not same(session.run(None, given[call % len(given)]), want[call % len(given)]):
                    wrong.append(call)
        except BaseException as error:  # a thread's error is lost otherwise
            failures.append(error)

    def both(count: int) -> None:
        threads = [threading.Thread(target=work, args=(first, count // 2)) for first in (0, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both(calls // 4)
    before = resident()
    both(calls - calls // 4)
    assert not wrong and not failures
    return (resident() - before) / 2**20


Check = Callable[[Path, int], float]


@pytest.mark.parametrize("check", [check_streams, check_threads])
@pytest.mark.parametrize("name", ["f32", "i8"])
def test_many_calls_at_once(tmp_path: Path, check: Check, name: str) -> None:
    assert check(layer_file(tmp_path, name), 400) < 64


@pytest.mark.parametrize("check", [check_streams, check_threads])
def test_many_calls_of_several_threads(tmp_path: Path, check: Check) -> None:
    assert check(layer_file(tmp_path, "i8", 3), 400) < 64


@pytest.mark.deep
@pytest.mark.parametrize("check", [check_streams, check_threads])
@pytest.mark.parametrize("name", ["f32", "i16", "i8", "i8-shared"])
def test_ten_thousand_calls(tmp_path: Path, check: Check, name: str) -> None:
    assert check(layer_file(tmp_path, name), 10_000) < GROWTH


def state(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def loose(path: Path) -> Any:
    """Returns a compiled model that takes inputs of any sizes: OpenVINO itself refuses nothing but a rank."""
    import openvino as ov

    model = ov_core().read_model(str(path))
    sizes = {port: ov.PartialShape([-1] * len(port.partial_shape)) for port in model.inputs}
    model.reshape(sizes)
    return ov_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def check_nan(compiled: Any, good: dict[str, Array], change: dict[str, Array]) -> None:
    """Inputs that fit nothing give NaN in the shapes that X asks for, and leave nothing behind."""
    want = ov_run(compiled, good)
    x = {**good, **change}["x"]
    results = ov_run(compiled, {**good, **change})
    if len(results) == 3:
        assert [each.shape for each in results] == [
            (x.shape[0], 1, x.shape[1], 24), (1, x.shape[1], 24), (1, x.shape[1], 24),
        ]  # fmt: skip
    else:
        assert results[0].shape == (*x.shape[:-1], 83)
    assert all(np.isnan(result).all() for result in results)
    assert same(ov_run(compiled, good), want)


BROKEN: list[dict[str, Array]] = [
    {"x": state(4, 3, 23)}, {"x": state(4, 3, 25)}, {"x": state(4, 3, 0)}, {"x": state(4, 2, 24)},
    {"h_0": state(1, 3, 23)}, {"h_0": state(2, 3, 24)}, {"h_0": state(1, 4, 24)}, {"h_0": state(0, 3, 24)},
    {"c_0": state(1, 3, 23)}, {"c_0": state(2, 3, 24)}, {"c_0": state(1, 2, 24)}, {"c_0": state(1, 0, 24)},
    *({"lengths": np.zeros(size, np.int32)} for size in (2, 4, 0)),
    {"x": state(4, 2, 23), "h_0": state(3, 1, 1), "c_0": state(0, 0, 0), "lengths": np.zeros(7, np.int32)},
]  # fmt: skip
"""Every precondition of the op's `run`, broken alone, and all at once."""


@pytest.mark.parametrize(
    "change", BROKEN, ids=lambda change: " ".join(f"{k}{v.shape}" for k, v in change.items())
)
@pytest.mark.parametrize("name", ["f32", "i8"])
def test_evaluate_of_inputs_that_do_not_fit(tmp_path: Path, change: dict[str, Array], name: str) -> None:
    rng, item = np.random.default_rng(10), format_named(name)
    weights = random_layer(rng, item, hidden=24, inputs=24, plain=True)
    compiled = loose(save_sparse(tmp_path / "sparse.onnx", weights, item, states=True, lengths=True))
    good = {**feeds(rng, weights, 4, 3), "lengths": np.array([4, 2, 1], np.int32)}
    check_nan(compiled, good, change)


def test_evaluate_of_products_that_do_not_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    matrix = (rng.standard_normal((1, 83, 70)) * (rng.random((1, 83, 70)) < 0.3)).astype(np.float32)
    save_product(tmp_path / "product.onnx", format_named("i8").pack(matrix), None, ("rows", "columns"))
    compiled, good = loose(tmp_path / "product.onnx"), {"x": rng.standard_normal((3, 70)).astype(np.float32)}
    for shape in ((4, 69), (4, 71), (4, 0), (0, 69), (700, 7)):
        check_nan(compiled, good, {"x": state(*shape)})


def test_evaluate_never_fails(tmp_path: Path) -> None:
    rng, item = np.random.default_rng(10), format_named("i8")
    weights = random_layer(rng, item, hidden=24, inputs=24, plain=True)
    compiled = ov_compile(save_sparse(tmp_path / "sparse.onnx", weights, item, states=True, lengths=True))
    good = {**feeds(rng, weights, 4, 3), "lengths": np.array([4, 2, 1], np.int32)}
    want = ov_run(compiled, good)
    refused = {"x": state(4, 3, 23)}, {"h_0": state(1, 3, 23)}, {"c_0": state(2, 3, 24)}, {"x": state(4, 3)}
    for change in refused:  # by OpenVINO, before the op sees them: the model's own shapes tell
        with pytest.raises(RuntimeError):
            ov_run(compiled, {**good, **change})
        assert same(ov_run(compiled, good), want)
    empty = {"x": state(4, 0, 24), "h_0": state(1, 0, 24), "c_0": state(1, 0, 24)}
    odd: list[dict[str, Array]] = [
        {"lengths": np.array([-5, 2**31 - 1, -(2**31)], np.int32)},
        {"x": np.full((4, 3, 24), np.nan, np.float32)},
        {"x": np.full((4, 3, 24), np.inf, np.float32)},
        {"x": state(0, 3, 24)},
        {**empty, "lengths": np.zeros(0, np.int32)},
    ]
    for change in odd:
        results = ov_run(compiled, {**good, **change})
        assert results[0].shape[:1] == {**good, **change}["x"].shape[:1]
        assert same(ov_run(compiled, good), want)
