"""The ops in both runtimes: right numbers, hostile files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from lstmopt.errors import LstmoptError
from lstmopt.runtimes.ops import libraries, library
from lstmopt.sparsity.formats import FORMATS, format_named
from tests.ops import (
    WITH_ALPHA,
    WITH_BETA,
    check_lengths,
    double_lstm,
    error,
    feeds,
    needs_ops,
    ort_session,
    ov_compile,
    ov_core,
    ov_run,
    random_layer,
    save_dense,
    save_product,
    save_sparse,
)

pytestmark = needs_ops


def check_f32(folder: Path, count: int, seed: int) -> None:
    """f32 within 4 times ONNX Runtime's own error, against the same weights in double precision.

    Of single layers too, where an error below one unit in the last place counts as one: some have a
    single output.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(2)
    for number in range(count):
        weights = random_layer(rng, format_named("f32"))
        given = feeds(rng, weights, int(rng.integers(1, 12)), int(rng.integers(1, 6)))
        want = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
        own = ort_session(save_dense(folder / "dense.onnx", weights), ours=False).run(None, given)
        path = save_sparse(folder / "sparse.onnx", weights, format_named("f32"), states=True)
        ours = ort_session(path).run(None, given)
        for have, theirs, right in zip(ours, own, want, strict=True):
            errors = error(have, right), error(theirs, right)
            total += np.square(errors)
            assert errors[0] < 4 * max(errors[1], 2**-23), number
        if number % 5 == 0:
            for have, other in zip(ours, ov_run(ov_compile(path), given), strict=True):
                assert np.array_equal(have, other)
    assert np.sqrt(total[0]) < 4 * np.sqrt(total[1])


def test_f32_is_as_exact_as_onnxruntime(tmp_path: Path) -> None:
    check_f32(tmp_path, 60, 1)


@pytest.mark.deep
def test_f32_is_as_exact_as_onnxruntime_500(tmp_path: Path) -> None:
    check_f32(tmp_path, 500, 2)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_within_their_bands(tmp_path: Path, name: str) -> None:
    item, rng = format_named(name), np.random.default_rng(3)
    for hidden in (48, 130):
        weights = random_layer(rng, None, hidden=hidden, inputs=hidden, plain=True)
        if name == "i8-shared":
            mask = weights.w[:, :1] != 0, weights.r[:, :1] != 0
            weights = dataclasses.replace(weights, w=weights.w * mask[0], r=weights.r * mask[1])
        given = feeds(rng, weights, 35, 2)
        want = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
        path = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True)
        ours = ort_session(path).run(None, given)
        for have, right in zip(ours, want, strict=True):
            assert error(have, right) < item.error
        for have, other in zip(ours, ov_run(ov_compile(path), given), strict=True):
            assert np.array_equal(have, other)


@pytest.mark.parametrize("name", ["f32", "i8"])
def test_lengths(tmp_path: Path, name: str) -> None:
    item, rng = format_named(name), np.random.default_rng(4)
    for direction in ("forward", "reverse", "bidirectional"):
        weights = random_layer(rng, item, plain=False)
        while weights.direction != direction:
            weights = random_layer(rng, item, plain=False)
        given = feeds(rng, weights, 7, 5)
        dense = save_dense(tmp_path / "dense.onnx", weights, lengths=True)
        path = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True, lengths=True)
        for lengths in ([7, 3, 1, 0, 9], [0, 0, 2, 0, 0], [0] * 5):
            given["lengths"] = np.array(lengths, np.int32)
            want = double_lstm(weights, given["x"], given["h_0"], given["c_0"], given["lengths"])
            check_lengths(dense, path, given, want, item.error)


def test_activations(tmp_path: Path) -> None:
    rng, item = np.random.default_rng(5), format_named("f32")
    names = ("HardSigmoid", "ScaledTanh", "Elu", "Softsign", "LeakyRelu", "Affine")
    last = ("Relu", "ThresholdedRelu", "Softplus", "Tanh", "Sigmoid")
    for extra in last:
        chosen = (*names[:2], extra, *names[3:5], "ScaledTanh")
        weights = random_layer(rng, item, hidden=20, inputs=20)
        chosen = chosen[: 3 * weights.num_directions]
        weights = dataclasses.replace(
            weights,
            activations=chosen,
            activation_alpha=tuple(0.3 for name in chosen if name in WITH_ALPHA),
            activation_beta=tuple(0.7 for name in chosen if name in WITH_BETA),
        )
        given = feeds(rng, weights, 5, 2)
        want = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
        path = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True)
        for results in (ort_session(path).run(None, given), ov_run(ov_compile(path), given)):
            for have, right in zip(results, want, strict=True):
                assert error(have, right) < 3e-6


@pytest.mark.parametrize("name", sorted(WITH_ALPHA))
def test_alpha_and_beta_that_are_not_given_are_onnxruntimes(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(8)
    weights = random_layer(rng, format_named("f32"), hidden=20, inputs=20, plain=True)
    weights = dataclasses.replace(weights, activations=("Sigmoid", name, "Tanh"))
    given = feeds(rng, weights, 5, 2)
    want = ort_session(save_dense(tmp_path / "dense.onnx", weights), ours=False).run(None, given)
    path = save_sparse(tmp_path / "sparse.onnx", weights, format_named("f32"), states=True)
    reference = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
    for results in (ort_session(path).run(None, given), ov_run(ov_compile(path), given), reference):
        for have, right in zip(results, want, strict=True):
            np.testing.assert_allclose(have, right, rtol=0, atol=3e-6 * max(1.0, np.abs(right).max()))


@pytest.mark.parametrize("name", ["f32", "i8"])
def test_more_steps_and_rows_than_are_computed_at_a_time(tmp_path: Path, name: str) -> None:
    """A layer sums 1 MiB of its inputs at a time, a product takes 512 KiB of rows: each has several here."""
    rng, item = np.random.default_rng(9), format_named(name)
    for direction in ("forward", "reverse"):
        weights = random_layer(rng, item, hidden=100, inputs=10, plain=True)
        weights = dataclasses.replace(weights, direction=direction)
        given = feeds(rng, weights, 400, 4)  # 2.5 MB of sums
        want = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
        path = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True)
        for results in (ort_session(path).run(None, given), ov_run(ov_compile(path), given)):
            for have, right in zip(results, want, strict=True):
                assert error(have, right) < item.error
    matrix = (rng.standard_normal((1, 33, 600)) * (rng.random((1, 33, 600)) < 0.2)).astype(np.float32)
    x = rng.standard_normal((900, 600)).astype(np.float32)  # 2.2 MB
    path = tmp_path / "product.onnx"
    save_product(path, item.pack(matrix), None, x.shape)
    want = x.astype(np.float64) @ matrix[0].T.astype(np.float64)
    for have in (ort_session(path).run(None, {"x": x})[0], ov_run(ov_compile(path), {"x": x})[0]):
        assert error(have, want) < item.error


@pytest.mark.parametrize("name", [name for name in sorted(FORMATS) if name != "i8-shared"])
def test_products(tmp_path: Path, name: str) -> None:
    rng, item = np.random.default_rng(6), format_named(name)
    matrix = (rng.standard_normal((1, 83, 70)) * (rng.random((1, 83, 70)) < 0.3)).astype(np.float32)
    bias = rng.standard_normal(83).astype(np.float32)
    for shape in ((70,), (1, 70), (9, 70), (2, 3, 70), (0, 70)):
        path = tmp_path / "product.onnx"
        save_product(path, item.pack(matrix), bias, shape)
        x = rng.standard_normal(shape).astype(np.float32)
        want = x.astype(np.float64) @ matrix[0].astype(np.float64).T + bias
        ours = ort_session(path).run(None, {"x": x})[0]
        assert ours.shape == want.shape
        if x.size:
            assert error(ours, want) < item.error
            assert np.array_equal(ov_run(ov_compile(path), {"x": x})[0], ours)


def test_precision_hints_and_files_of_openvino(tmp_path: Path) -> None:
    import openvino as ov

    rng, item = np.random.default_rng(7), format_named("f32")
    weights = random_layer(rng, item, hidden=64, inputs=64)
    given = feeds(rng, weights, 9, 2)
    want = double_lstm(weights, given["x"], given["h_0"], given["c_0"])
    path = save_sparse(tmp_path / "sparse.onnx", weights, item, states=True)
    for compress in (False, True):
        ov.save_model(ov_core().read_model(str(path)), tmp_path / "model.xml", compress_to_fp16=compress)
        for hint in ("f32", "bf16", "f16"):
            results = ov_run(ov_compile(tmp_path / "model.xml", INFERENCE_PRECISION_HINT=hint), given)
            bound = 3e-6 if hint == "f32" and not compress else 2e-3 if hint != "bf16" else 2e-2
            for have, right in zip(results, want, strict=True):
                assert error(have, right) < bound, (compress, hint)


def damaged(blob: bytes) -> dict[str, bytes]:
    """Returns packed weights with one fault each."""

    def put(at: int, value: int, size: int) -> bytes:
        return blob[:at] + value.to_bytes(size, "little") + blob[at + size :]

    slots = int.from_bytes(blob[24:28], "little")
    return {
        "magic": b"?" + blob[1:],
        "version": put(8, 2, 2),
        "format": put(10, 77, 2),
        "width": put(12, 16, 2),
        "gates": put(14, 3, 2),
        "units": put(16, 2**31, 4),
        "no units": put(16, 0, 4),
        "columns": put(20, 2**32 - 1, 4),
        "slots": put(24, 2**32 - 1, 4),
        "more slots": put(24, slots + 64, 4),
        "size": put(32, 2**64 - 64, 8),
        "cut": blob[: len(blob) // 128 * 64],
        "start": put(64, 5, 4),
        "start order": put(68, 2**32 - 1, 4),
        "bank": put(64 + 64, 9999, 2),
        "empty": b"",
    }


@pytest.mark.parametrize("name", ["f32", "i16", "i8", "i8-shared"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str) -> None:
    rng, item = np.random.default_rng(8), format_named(name)
    weights = random_layer(rng, item, hidden=30, inputs=30, plain=True)
    model = onnx.load(save_sparse(tmp_path / "good.onnx", weights, item))
    tensor = next(item for item in model.graph.initializer if item.name == "rnn.R")
    faults = damaged(tensor.raw_data)
    if name != "f32":
        index = bytearray(tensor.raw_data)
        index[-320:] = b"\xff" * 320  # an index or a word beyond the last column
        faults["index"] = bytes(index)
    for fault, blob in faults.items():
        tensor.raw_data, tensor.dims[0] = blob, len(blob)
        path = tmp_path / "bad.onnx"
        onnx.save(model, path)
        with pytest.raises(Exception, match=r"packed weights|R is|hidden|missing|constant") as ours:
            ort_session(path)
        with pytest.raises(Exception, match=r"packed weights|R is|hidden|missing|constant|[Ss]hape"):
            ov_compile(path)
        assert "lstmopt" in str(ours.value), fault


def test_other_faults_are_refused(tmp_path: Path) -> None:
    rng, item = np.random.default_rng(9), format_named("f32")
    weights = random_layer(rng, item, hidden=20, inputs=20, plain=True)
    model = onnx.load(save_sparse(tmp_path / "good.onnx", weights, item))

    def refused(change: onnx.ModelProto) -> None:
        onnx.save(change, tmp_path / "bad.onnx")
        with pytest.raises(Exception, match="lstmopt"):
            ort_session(tmp_path / "bad.onnx")
        with pytest.raises(RuntimeError):
            ov_compile(tmp_path / "bad.onnx")

    for name, value in (
        ("direction", "sideways"), ("activations", "Tanh Tanh"), ("activations", "Sigmoid Tanh Cosine"),
        ("clip", -1.0), ("hidden_size", 21), ("direction", "bidirectional"),
    ):  # fmt: skip
        other = onnx.ModelProto()
        other.CopyFrom(model)
        node = other.graph.node[0]
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
        refused(other)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.initializer[2].CopyFrom(
        onnx.numpy_helper.from_array(np.ones((1, 7), np.float32), other.graph.initializer[2].name)
    )
    refused(other)


def test_threads_give_the_same(tmp_path: Path) -> None:
    import onnxruntime as ort

    rng, item = np.random.default_rng(12), format_named("i16")
    weights = random_layer(rng, item, hidden=150, inputs=150, plain=True)
    given = feeds(rng, weights, 6, 3)
    want = ort_session(save_sparse(tmp_path / "one.onnx", weights, item, states=True)).run(None, given)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 4
    options.register_custom_ops_library(str(library("onnxruntime")))
    path = save_sparse(tmp_path / "four.onnx", weights, item, states=True, threads=4)
    settings = {"INFERENCE_NUM_THREADS": "4", "NUM_STREAMS": "1"}
    for outputs in (
        ort.InferenceSession(str(path), options).run(None, given),
        ov_run(ov_compile(path, **settings), given),
    ):
        for have, right in zip(outputs, want, strict=True):
            assert np.array_equal(have, right)


def test_denormals_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    weights = random_layer(np.random.default_rng(13), format_named("f32"), plain=True)
    session = ort_session(save_sparse(tmp_path / "sparse.onnx", weights, format_named("f32")))
    session.run(None, {"x": np.zeros((2, 1, weights.input_size), np.float32)})
    assert np.float32(1e-40) * np.float32(0.5) != 0


def test_no_path_of_the_build_in_the_libraries() -> None:
    here = str(Path(__file__).resolve().parents[1]).encode()
    for runtime in ("openvino", "onnxruntime"):
        content = library(runtime).read_bytes()
        assert here not in content and b"/tmp/" not in content and b"/home/" not in content


def test_a_library_that_is_missing_or_of_another_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_installed", lambda: "2020.1.0")
    with pytest.raises(LstmoptError, match="lstmopt build-ops"):
        library("openvino")
    monkeypatch.setattr(libraries, "folders", lambda: (Path("nowhere"),))
    with pytest.raises(LstmoptError, match="were not built"):
        library("onnxruntime")


def test_openvino_s_library_works_in_the_threads_of_openvino():
    """OpenVINO's wheel brings the TBB that its streams work in; without it an op has one thread, silently."""
    import openvino

    brought = list(Path(openvino.__file__).parent.glob("libs/libtbb.so*"))
    assert brought, "the wheel has no TBB any more: docs/ops.md says what that means"
    assert b"libtbb.so" in library("openvino").read_bytes()
