"""Reads and writes ONNX files; every fault of a file is one clear line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OLDEST_OPSET = 7
"""Before it, the LSTM operator and broadcasting had other forms."""

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes of one protobuf message; larger models need external data."""


def load_model(path: str | Path) -> ir.Model:
    """Returns the model of an ONNX file: external data read in, recurrent nodes in layout 0 and float32.

    The model's own functions are inlined.

    Raises:
        LstmoptError: no such file, not ONNX, truncated, external data missing or outside the folder,
            an invalid graph, or an opset that is too old.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    from lstmopt.rnn.layout import TimeFirst, is_batch_first
    from lstmopt.rnn.rewriting import rewrite
    from lstmopt.rnn.widening import FullPrecision, has_narrow_rnns

    path = Path(path)
    proto = _parse(path)
    _read_external_data(proto, path)
    _name_the_default_domain(proto)
    _tell_output_shapes(proto)
    _check(proto, path)
    model: ir.Model = ir.from_proto(proto)
    if model.functions:  # a layer inside one is a layer like others
        model = rewrite(model, InlinePass())
    if any(is_batch_first(node) for node in model.graph.all_nodes()):
        model = rewrite(model, TimeFirst())
    if has_narrow_rnns(model):
        model = rewrite(model, FullPrecision())
    return model


def _name_the_default_domain(proto: onnx.ModelProto) -> None:
    """Spells the domain "ai.onnx" as "", in place: both are ONNX's own."""
    for holder in (proto, *proto.functions):
        for entry in holder.opset_import:
            if entry.domain == "ai.onnx":
                entry.domain = ""
        default = [index for index, entry in enumerate(holder.opset_import) if not entry.domain]
        for index in reversed(default[1:]):
            del holder.opset_import[index]
    pending = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while pending:
        node = pending.pop()
        if node.domain == "ai.onnx":
            node.domain = ""
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                pending += body.node


def _tell_output_shapes(proto: onnx.ModelProto) -> None:
    """Gives outputs without a shape the one that is inferred, in place: ONNX Runtime takes them, too."""
    import onnx

    unknown = [
        value
        for value in proto.graph.output
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    if not unknown or proto.ByteSize() > PROTOBUF_LIMIT:
        return
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return  # the check says what is wrong
    known = {value.name: value.type.tensor_type for value in inferred.graph.output}
    for value in unknown:
        if value.name in known and known[value.name].HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(known[value.name].shape)


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.exists():
        raise LstmoptError(str(path), "no such file", "check the path")
    if path.is_dir():
        raise LstmoptError(str(path), "is a folder, not an ONNX file", "name the .onnx file in it")
    data = path.read_bytes()
    if not data:
        raise LstmoptError(str(path), "the file is empty", "export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise LstmoptError(
            str(path), "not an ONNX file, or a truncated one", "export the model again or copy it whole"
        ) from error
    if not proto.opset_import or not proto.graph.node:
        raise LstmoptError(
            str(path), "not an ONNX file, or one without a graph", "export the model again or copy it whole"
        )
    return proto


def _read_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Loads external tensors, but only from the model's own folder."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    folder = path.resolve().parent
    for tensor in all_tensors(proto.graph):
        if not uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        place = folder / location
        if Path(location).is_absolute() or not place.resolve().is_relative_to(folder) or place.is_symlink():
            raise LstmoptError(
                str(path),
                f"tensor {tensor.name!r} points outside the model's folder ({location!r})",
                "keep external data beside the model",
            )
        if not place.is_file():
            raise LstmoptError(
                str(path),
                f"external data {location!r} of tensor {tensor.name!r} is missing",
                "copy it beside the model",
            )
    try:
        load_external_data_for_model(proto, str(folder))
    except (onnx.checker.ValidationError, ValueError, OSError, RuntimeError) as error:
        raise LstmoptError(
            str(path), f"external data cannot be read ({_first_line(error)})", "copy the data file whole"
        ) from error


def all_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Returns all tensors of a graph and of its subgraphs."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            found.extend(attribute.tensors)
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found.extend(all_tensors(body))
    return found


def _check(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset < OLDEST_OPSET:
        raise LstmoptError(
            str(path), f"opset {opset} is not supported", f"export with opset {OLDEST_OPSET} or newer"
        )
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise LstmoptError(
            str(path), f"opset {opset} is newer than this onnx package knows ({newest})", "update onnx"
        )
    for tensor in proto.graph.initializer:
        expected = _expected_bytes(tensor)
        if expected is not None and tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise LstmoptError(
                str(path),
                f"tensor {tensor.name!r} has {len(tensor.raw_data)} bytes, its shape needs {expected}",
                "export the model again or copy it whole",
            )
    if proto.ByteSize() > PROTOBUF_LIMIT:
        return  # the checker would serialise it
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise LstmoptError(
            str(path), f"not a valid model ({_first_line(error)})", "export it again"
        ) from error
    except UnicodeDecodeError as error:  # the checker's message quotes the name
        raise LstmoptError(
            str(path), "damaged: a name in it is not text", "export the model again or copy it whole"
        ) from error


def _expected_bytes(tensor: onnx.TensorProto) -> int | None:
    import math

    import onnx

    try:
        item = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        return None
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) or tensor.data_type > 16:
        return None
    return int(math.prod(tensor.dims)) * item


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def save_model(model: ir.Model, path: str | Path) -> None:
    """Writes a model beside its destination and moves it into place whole.

    A model over protobuf's limit of 2 GB keeps its large tensors in ``<name>.data``.

    Raises:
        LstmoptError: the folder cannot be written or the disk is full.
    """
    import onnx
    import onnx_ir as ir

    path = Path(path)
    proto = ir.to_proto(model)
    large = proto.ByteSize() > PROTOBUF_LIMIT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            beside = Path(folder) / path.name
            if large:
                onnx.save(proto, beside, save_as_external_data=True, location=f"{path.name}.data")
                (Path(folder) / f"{path.name}.data").replace(path.parent / f"{path.name}.data")
            else:
                with beside.open("wb") as file:
                    file.write(proto.SerializeToString())
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
    except OSError as error:
        raise LstmoptError(
            str(path),
            f"cannot be written ({error.strerror})",
            "check the folder, its rights and the free space",
        ) from error
