"""What results depend on besides their input (the code, the packages, the machine), and hashes of it."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import lstmopt
from lstmopt.measure.fingerprint import fingerprint
from lstmopt.rnn.files import all_tensors
from lstmopt.runtimes import ops

if TYPE_CHECKING:
    import onnx_ir as ir

PACKAGES = ("openvino", "onnxruntime", "onnx", "torch", "numpy", "tensorrt", "tensorrt-rtx-cu13")
MACHINE = {"cpu", "isa", "caches", "cores", "gpu"}
"""Fields of the fingerprint that latency and rounding depend on."""


def digest(*parts: str) -> str:
    """Returns a hash of some texts, 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Returns the versions that figures depend on."""
    found = {"lstmopt": lstmopt.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_version() -> str:
    """Returns a hash of this package's sources and native ops, so that no other code's results are taken."""
    root = Path(lstmopt.__file__).parent
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(root.rglob("*.py")):
        state.update(path.read_bytes())
    state.update(ops.digest().encode())
    return state.hexdigest()


def software() -> str:
    """Returns a hash of the code and of the packages that it computes with."""
    return digest(code_version(), json.dumps(versions(), sort_keys=True))


def surroundings() -> str:
    """Returns a hash of the code, the packages and the machine."""
    return digest(software(), fingerprint().model_dump_json(include=MACHINE))


def model_digest(model: ir.Model) -> str:
    """Returns a hash of a graph with its weights, hexadecimal."""
    import onnx_ir as ir

    proto = ir.to_proto(model)
    state = hashlib.sha256()
    # Tensor by tensor: all together may be over protobuf's limit of 2 GB.
    for tensor in proto.graph.initializer:
        state.update(tensor.SerializeToString(deterministic=True))
    del proto.graph.initializer[:]
    state.update(proto.SerializeToString(deterministic=True))
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of an ONNX file and of the external data beside it, hexadecimal."""
    import onnx

    state = hashlib.sha256(path.read_bytes())
    locations = {
        entry.value
        for tensor in all_tensors(onnx.load(path, load_external_data=False).graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        state.update((path.parent / location).read_bytes())
    return state.hexdigest()
