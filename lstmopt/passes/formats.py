"""Chooses the format of each layer and product by measuring, the dense kernel included."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmopt import measure
from lstmopt.errors import LstmoptError
from lstmopt.passes.latency import most_frequent
from lstmopt.passes.sparse_ops import Place, SparseOps, sparse_places
from lstmopt.precision import SPARSE, is_sparse
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import save_model
from lstmopt.rnn.rewriting import rewrite
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import runtime
from lstmopt.runtimes.base import Deployment, Feeds
from lstmopt.sparsity.formats import FORMATS, Format
from lstmopt.sparsity.formats.layers import layer_format_name, layer_formats
from lstmopt.sparsity.precisions import allowed_formats

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.targets import Target

DENSE = "dense"
"""What takes part in a choice beside the formats: the runtime's own kernel in f32."""

ROUNDS = 6
SHARED = 1.2
"""How many times faster a call has to be where the runtime's threads share each step of a sparse op."""

ROOMY = 1.5
"""Formats whose packed weights take this many times the bytes of the smallest are not measured: beyond the
first-level cache time goes with bytes."""

APART = 0.95
"""W and R in formats of their own are measured where they take this share of the bytes of one for both."""

Progress = Callable[[str, float], None]
Choose = Callable[[str, str], dict[str, str]]
"""Returns the format of each place of a model that is to be sparse, given a runtime and a precision."""

FormatsOf = Callable[["ir.Model", Feeds, "Target"], Choose]
"""`measured_formats` or `smallest_formats`."""

_MEASURED: dict[Any, Measured] = {}
"""What this process has measured, by runtime, threads, shapes and packed sizes."""


@dataclass(frozen=True)
class Measured:
    """Latency of one place in each format, and in the runtime's dense kernel.

    Attributes:
        latency_us: by format, `DENSE` among them.
    """

    latency_us: dict[str, float]

    def fastest(self, allowed: Sequence[str]) -> str:
        """Returns the fastest of some formats and of the dense kernel."""

        def may(name: str) -> bool:
            return name == DENSE or all(item.name in allowed for item in layer_formats(name))

        return min(filter(may, self.latency_us), key=self.latency_us.__getitem__)


def measured_formats(
    model: ir.Model,
    feeds: Feeds,
    target: Target,
    seed: int = 0,
    progress: Progress = lambda text, fraction: None,
) -> Choose:
    """Returns what chooses for each place of a model the fastest format, where it is faster than dense.

    What was measured for one model serves the next like it.

    Args:
        model: the graph.
        feeds: inputs of the call that counts.
        target: for threads.
        seed: of random inputs.
        progress: told how far it is.
    """

    @cache
    def places() -> list[tuple[Place, tuple[int, ...], dict[str, int]]]:
        found = sparse_places(model)
        shapes = _input_shapes(model, found, feeds, target) if found else []
        return list(zip(found, shapes, map(worth_measuring, found), strict=True))

    def choose(name: str, precision: str) -> dict[str, str]:
        allowed = allowed_formats(precision)
        chosen = {}
        for place, shape, worth in places():
            key = (
                name,
                target.threads,
                shape,
                _fixed(place),
                place.form,
                tuple(m.shape for m in place.matrices),
                *worth.items(),
            )
            if key not in _MEASURED:
                progress(f"formats of {place.name} in {name}", 0.0)
                _MEASURED[key] = _measure(place, shape, name, list(worth), target.threads, seed)
            chosen[place.name] = _MEASURED[key].fastest(allowed)
        return {place: item for place, item in chosen.items() if item != DENSE}

    return choose


def smallest_formats(model: ir.Model, feeds: Feeds, target: Target) -> Choose:
    """Returns what chooses for each place the format of the fewest bytes, of equal ones the least exact.

    Nothing is measured: good enough to rank models, and quick. Arguments are those of `measured_formats`.
    """
    places = sparse_places(model)

    def choose(name: str, precision: str) -> dict[str, str]:
        allowed = allowed_formats(precision)
        return {
            place.name: _smallest({i: place.packed_bytes(i) for i in place.formats if i.name in allowed})[0]
            for place in places
        }

    return choose


def _smallest(parts: Mapping[Format, tuple[int, ...]]) -> tuple[str, int]:
    """Returns the format of the fewest bytes, of equal ones the least exact, and the bytes.

    Of a layer W and R have formats of their own where that takes clearly fewer, see `APART`.

    Args:
        parts: see `Place.packed_bytes`, by format.
    """
    whole = min(parts, key=lambda item: (sum(parts[item]), -item.error))
    apart = [min(parts, key=lambda item: (parts[item][p], -item.error)) for p in range(len(parts[whole]))]
    size = sum(parts[item][part] for part, item in enumerate(apart))
    if size <= APART * sum(parts[whole]):
        return layer_format_name(apart[0], apart[-1]), size
    return whole.name, sum(parts[whole])


def worth_measuring(place: Place) -> dict[str, int]:
    """Returns the formats to be measured, with the bytes that they take, to two digits.

    Of each exactness the smallest ones are, since the most exact may be all that is allowed; of two that lay
    out a mask alike the less exact one is faster. W and R in formats of their own are where that takes
    clearly fewer bytes than any format for both that is as exact: masks of different density or pattern.
    """
    parts = {item: place.packed_bytes(item) for item in place.formats}
    taken = {item.name: sum(each) for item, each in parts.items()}
    found = {}
    for name, size in taken.items():
        least = min(taken[other] for other in taken if FORMATS[other].error <= FORMATS[name].error)
        alike = [
            other.error
            for other in place.formats
            if taken[other.name] == size
            and (other.width, other.step) == (FORMATS[name].width, FORMATS[name].step)
        ]
        if size <= ROOMY * least and FORMATS[name].error == max(alike):
            found[name] = size
    for bound in sorted({item.error for item in parts}, reverse=True):
        name, size = _smallest({item: each for item, each in parts.items() if item.error <= bound})
        # What is no smaller than a less exact one is slower.
        if name not in taken and size not in found.values():
            found[name] = size
    return {name: int(float(f"{size:.2g}")) for name, size in found.items()}


def _input_shapes(
    model: ir.Model, places: Sequence[Place], feeds: Feeds, target: Target
) -> list[tuple[int, ...]]:
    """Returns the shape of what each place multiplies in a call.

    What a body computes cannot be watched: its sizes are those that the graph tells, or else the target's.
    """
    names = {place.name: str(place.input.name) for place in places if _is_watched(place)}
    seen = Reference(model, sorted({name for name in names.values() if name not in feeds})).run(feeds)
    values = {**feeds, **seen}
    call = most_frequent(target)
    found: list[tuple[int, ...]] = []
    for place in places:
        if place.name in names:
            found.append(values[names[place.name]].shape)
            continue
        default = (call.sequence, call.batch, place.matrices[0].shape[2])
        sizes = place.input.shape or default
        found.append(tuple(s if isinstance(s, int) else d for s, d in zip(sizes, default, strict=True)))
    return found


def _is_watched(place: Place) -> bool:
    return place.layer is None or not place.layer.in_body


def _measure(
    place: Place, shape: tuple[int, ...], name: str, formats: Sequence[str], threads: int, seed: int
) -> Measured:
    """Times one place alone in every format and dense, in its runtime.

    Raises:
        LstmoptError: the runtime cannot build or run it.
    """
    engine = runtime(name)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    dense = _bare(place, shape)
    bare_name = sparse_places(dense)[0].name
    forms = [(DENSE, 1), *((item, tasks) for item in formats for tasks in sorted({1, threads}))]
    with tempfile.TemporaryDirectory(prefix="lstmopt-") as folder:
        candidates = []
        for item, tasks in forms:
            model = dense if item == DENSE else rewrite(dense, SparseOps({bare_name: item}, tasks))
            title = f"{item} {tasks}"
            source = Path(folder) / f"{title}.onnx"
            save_model(model, source)
            precision = "f32" if item == DENSE else f"{SPARSE}{item}"
            made = engine.build(source, precision, Path(folder) / title)
            candidates.append(measure.Candidate(title, made, [(1.0, {"x": x})]))
        comparison = measure.compare(
            candidates, threads=threads, rounds=ROUNDS, seed=seed, attempts=1, processes=1
        )
    # Of both forms the faster: `build_sparse` finds out which one ships.
    return Measured(
        {
            item: min(comparison.timing(f"{item} {tasks}").median for other, tasks in forms if other == item)
            for item in (DENSE, *formats)
        }
    )


def _fixed(place: Place) -> bool:
    """Whether the graph fixes the shape of what a place multiplies, which spares a runtime work."""
    sizes = place.input.shape
    return sizes is not None and all(isinstance(size, int) for size in sizes)


def _bare(place: Place, seen: tuple[int, ...]) -> ir.Model:
    """Returns a model of one place alone, dense, of the shape that was seen where the graph fixes it."""
    import onnx
    import onnx_ir as ir

    if place.layer is not None:
        assert place.layer.weights is not None
        steps, batch = seen[:2] if _fixed(place) else (None, None)
        return rnn_model(place.layer.weights, sequence=steps, batch=batch)
    matrix = np.ascontiguousarray(place.matrices[0][0].T)
    info = onnx.helper.make_tensor_value_info
    shape = seen[:-1] if _fixed(place) else [f"axis_{axis}" for axis in range(len(seen) - 1)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], name="product")],
        "product",
        [info("x", onnx.TensorProto.FLOAT, [*shape, matrix.shape[0]])],
        [info("y", onnx.TensorProto.FLOAT, [*shape, matrix.shape[1]])],
        [onnx.numpy_helper.from_array(matrix, "W")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model: ir.Model = ir.from_proto(proto)
    return model


def build_sparse(
    model: ir.Model,
    name: str,
    formats: dict[str, str],
    precision: str,
    threads: int,
    folder: Path,
    calls: Sequence[Feeds] = (),
) -> Deployment:
    """Writes a model with sparse ops in the form that a runtime loads, its library beside it.

    The ops work in one thread, and in several where that measures faster, see `SHARED`.

    Args:
        model: the graph, in standard ops.
        name: of the runtime.
        formats: the format of each place.
        precision: what the deployment is called.
        threads: of one inference.
        folder: where the files go.
        calls: inputs of the calls that it is made for, the most frequent first; the first is measured.

    Raises:
        LstmoptError: the runtime's library is missing, or it cannot load the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lstmopt-", dir=folder) as beside:

        def built(tasks: int, place: Path) -> Deployment:
            source = Path(beside) / f"{tasks}.onnx"
            save_model(rewrite(model, SparseOps(formats, tasks)), source)
            return runtime(name).build(source, precision, place)

        if threads == 1 or not calls:
            return built(1, folder)
        candidates = [
            measure.Candidate(str(tasks), built(tasks, Path(beside) / str(tasks)), [(1.0, calls[0])])
            for tasks in (1, threads)
        ]
        comparison = measure.compare(candidates, threads=threads, rounds=ROUNDS, attempts=1, processes=1)
        worth = comparison.ratio("1", str(threads)).value >= SHARED
        return built(threads if worth else 1, folder)


def build_in(
    model: ir.Model,
    source: Path,
    name: str,
    precision: str,
    choose: Choose,
    threads: int,
    folder: Path,
    known: Collection[Mapping[str, str]] = (),
    calls: Sequence[Feeds] = (),
) -> tuple[Deployment, dict[str, str]] | None:
    """Writes a model in the form that a runtime loads in a precision, dense or sparse.

    Args:
        model: the graph, in standard ops.
        source: its file.
        name: of the runtime.
        precision: one that the runtime has here.
        choose: chooses the formats of a sparse one.
        threads: of one inference.
        folder: where the files go.
        known: formats that were built already: a less exact precision may allow nothing that is faster.
        calls: inputs of the calls that it is made for, the most frequent first.

    Returns:
        How it is loaded, and the format of each place; None where nothing would be sparse, or nothing new.

    Raises:
        LstmoptError: the runtime cannot build it.
    """
    if not is_sparse(precision):
        return runtime(name).build(source, precision, folder, calls), {}
    formats = choose(name, precision)
    if not formats or formats in known:
        return None
    return build_sparse(model, name, formats, precision, threads, folder, calls), formats


def nothing_sparse(name: str) -> LstmoptError:
    """Returns the error of a model without weights that sparse ops would gain by."""
    return LstmoptError(
        name,
        "no LSTM, GRU or product in it has so many zeros that a sparse op is faster",
        "prune it with lstmopt optimize, or name a dense format",
    )
