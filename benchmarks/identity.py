"""Whether a model computes what it did: errors against a float64 run, beside those of ONNX Runtime itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.float64 import Float64
from benchmarks.real_models import RealModel
from lstmopt.errors import LstmoptError
from lstmopt.passes.convert import convert
from lstmopt.passes.fix import fix_inputs
from lstmopt.passes.simplify import simplify
from lstmopt.passes.sparse_ops import RoundWeights, SparseOps, sparse_places
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.runtimes import Deployment, open_session
from lstmopt.runtimes import runtime as find_runtime
from lstmopt.targets import Target, load_target, with_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

TIMES, SHARE = 4.0, 1e-6
"""What is allowed: so many times ONNX Runtime's own error, and this share of the output's range."""

DENSE, SPARSE = ("onnxruntime", "openvino"), ("onnxruntime sparse-f32", "openvino sparse-f32")


def original(path: Path) -> Run:
    """Returns the user's file in ONNX Runtime as it comes, its optimisations on."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def outputs_of(model: RealModel, run: Run, seed: int = 0) -> list[Mapping[str, Array]]:
    """Returns what a model answers in each call, its states fed back."""
    rng = np.random.default_rng(seed)
    states = model.states or {}
    carried: Mapping[str, Array] = {name: np.zeros(model.start, np.float32) for name in states}
    answers = []
    for call in range(model.calls):
        answers.append(run({**model.feeds(rng, call), **carried}))
        carried = {name: answers[-1][output] for name, output in states.items()}
    return answers


def _error(found: Array, exact: Array) -> float:
    """Returns the largest difference, or of whole numbers the share that differs; infinite is infinite."""
    if found.shape != exact.shape:
        return float("inf")
    if exact.dtype.kind != "f":
        return float((found != exact).mean())
    difference = np.abs(np.subtract(found, exact, out=np.zeros(exact.shape), where=found != exact))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _range(values: list[Array]) -> float:
    finite = np.concatenate([value[np.isfinite(value)] for value in values])
    return float(np.ptp(finite)) if finite.size else 0.0


def judged(
    ours: list[Mapping[str, Array]], theirs: list[Mapping[str, Array]], exact: list[Mapping[str, Array]]
) -> dict[str, Any]:
    """Returns the error of each output, ONNX Runtime's own, and what is allowed; the worst of all calls."""
    found = {}
    for name in exact[0]:
        truth = [call[name] for call in exact]
        scale = _range(truth) if truth[0].dtype.kind == "f" else 0.0
        error, own = (
            max(_error(call[name], true) for call, true in zip(calls, truth, strict=True))
            for calls in (ours, theirs)
        )
        allowed = TIMES * own + SHARE * scale
        found[name] = {"error": error, "own": own, "range": scale, "holds": error <= allowed}
    return {"outputs": found, "holds": all(entry["holds"] for entry in found.values())}


def target_of(model: RealModel) -> Target:
    """Returns the local target with the shapes of a model's call."""
    shapes = {}
    for text in model.shapes:
        name, _, sizes = text.partition("=")
        shapes[name] = tuple(map(int, sizes.split("x")))
    return with_shapes(load_target("local"), shapes)


def _sparse(model: ir.Model, runtime: str, folder: Path) -> Deployment:
    """Writes a model with every layer and product as a sparse op in f32, though nothing is sparse.

    Raises:
        LstmoptError: no layer of it can be one, or the runtime cannot load it.
    """
    places = sparse_places(model, densest=1.0)
    if not any(place.layer is not None for place in places):
        raise LstmoptError("sparse ops", "no layer of it can be one", "see lstmopt inspect")
    file = folder / "source.onnx"
    save_model(rewrite(model, SparseOps({place.name: "f32" for place in places}, densest=1.0)), file)
    return find_runtime(runtime).build(file, "sparse-f32", folder / "built")


def _as_packed(model: RealModel, simple: ir.Model, folder: Path, ours: list[Mapping[str, Array]]) -> bool:
    """Whether a sparse model computes what the weights in its packed form say.

    A weight of sparse-f32 holds its index in its lowest 5 bits: it moves by up to 16 units in the last
    place, which a state that sums up over many calls can show.
    """
    formats = {place.name: "f32" for place in sparse_places(simple, densest=1.0)}
    file = folder / "rounded.onnx"
    save_model(rewrite(simple, RoundWeights(formats, densest=1.0)), file)
    runs = (without(model.constants, run) for run in (Float64(file).run, original(file)))
    exact, theirs = (outputs_of(model, run) for run in runs)
    return bool(judged(ours, theirs, exact)["holds"])


def _built(model: ir.Model, variant: str, source: RealModel, path: Path, folder: Path) -> Deployment:
    runtime, _, precision = variant.partition(" ")
    if precision:
        return _sparse(model, runtime, folder)
    target = target_of(source)
    return convert(model, path, runtime, "f32", target, folder / "out", lambda *_: None).deployment


def without(constants: Collection[str], run: Run) -> Run:
    """Returns a run to which some inputs are not handed on."""
    return lambda feeds: run({name: array for name, array in feeds.items() if name not in constants})


def checked(model: RealModel, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields for each variant, simplified, how far its outputs are, or why it was refused."""
    exact, theirs = (outputs_of(model, run) for run in (Float64(path).run, original(path)))
    whole = load_model(path)
    settled = fix_inputs(whole, model.constants, model.fixed_shapes, str(path)) if model.fix else whole
    for variant in (*DENSE, *SPARSE):
        # Its layers lie in branches, which OpenVINO does not take and which the sparse ops do not reach.
        given = whole if variant == DENSE[0] else settled
        simple, notes = simplify(given)
        gone = model.constants if given is settled else ()
        with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
            beside = Path(folder)
            beside.joinpath("built").mkdir()
            try:
                made = _built(simple, variant, model, path, beside)
                ours = outputs_of(model, without(gone, open_session(made, 1).run))
                found = {**judged(ours, theirs, exact), "notes": list(notes)}
                if variant in SPARSE and not found["holds"]:
                    found["as_packed"] = _as_packed(model, simple, beside, ours)
                yield variant, found
            except LstmoptError as error:
                yield variant, {"refused": str(error)}
