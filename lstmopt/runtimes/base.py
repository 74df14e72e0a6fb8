"""What a runtime is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from lstmopt.errors import LstmoptError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
AHEAD = "models are written for it here, to be run elsewhere"
"""What the status of a runtime says that does not run here."""


class Deployment(BaseModel):
    """A file and how a runtime loads it: an entry of ``manifest.json``.

    Attributes:
        runtime: "openvino", "onnxruntime", "tensorrt" and so on.
        file: what the runtime loads.
        precision: "f32", "bf16", "f16", "int8", or "sparse-" and a format of our ops.
        settings: what to pass to the runtime.
        libraries: extension libraries that it needs.
        input_shapes: shape of each input; a name where the size is dynamic.
    """

    model_config = ConfigDict(frozen=True)

    runtime: str
    file: Path
    precision: str
    settings: dict[str, str] = {}
    libraries: tuple[Path, ...] = ()
    input_shapes: dict[str, tuple[int | str, ...]] = {}

    def placed(self, folder: Path) -> Self:
        """Returns the same files as they lie in another folder, side by side.

        Args:
            folder: where they are; ``Path()`` for paths that are relative to it.
        """
        libraries = tuple(folder / library.name for library in self.libraries)
        return self.model_copy(update={"file": folder / self.file.name, "libraries": libraries})

    def inside(self, folder: Path) -> Self:
        """Returns an entry of an artifact's manifest with paths that open from anywhere.

        Args:
            folder: the artifact.
        """
        libraries = tuple(folder / library for library in self.libraries)
        return self.model_copy(update={"file": folder / self.file, "libraries": libraries})


class StatefulDeployment(Deployment):
    """A file of a model that keeps its states inside.

    Attributes:
        states: shape of each state by the name of the input that it was.
    """

    states: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a session; a dynamic size is None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class RuntimeStatus:
    """Whether a runtime can be used here, and if not, why and what to install.

    Attributes:
        name: of the runtime.
        usable: whether models run in it here.
        version: of its package, where installed.
        precisions: that run here.
        reason: what the user should know.
        ahead: precisions in which models can be written here for other machines, usable or not.
    """

    name: str
    usable: bool
    version: str
    precisions: tuple[str, ...]
    reason: str = ""
    ahead: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in the model's order."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs in the model's order."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Returns all outputs by name.

        Args:
            feeds: an array for each input, of its type and shape.

        Raises:
            LstmoptError: an input is missing, unknown or does not fit, or the runtime fails.
        """

    def bind(self, feeds: Feeds) -> Callable[[], Any]:
        """Returns a call of one inference on these inputs with as little Python in it as possible.

        Args:
            feeds: an array for each input, of its type and shape; they are kept as long as the call is.

        Raises:
            LstmoptError: an input is missing, unknown or does not fit.
        """


class Runtime(Protocol):
    """One runtime."""

    @property
    def name(self) -> str:
        """As targets and manifests name it."""

    def status(self) -> RuntimeStatus:
        """Says whether it can be used here."""

    def precisions(self) -> tuple[str, ...]:
        """Returns the precisions that this machine runs."""

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Writes what it loads into a folder.

        Args:
            model_file: an ONNX file; for a sparse precision one with our ops.
            precision: one of `precisions`, or "sparse-" and any format.
            folder: where the files go; it is made.
            calls: inputs of the calls that it is made for, the most frequent first; of use to runtimes
                that compile for sizes.

        Returns:
            How the runtime loads them.

        Raises:
            LstmoptError: it cannot convert the model, or does not run the precision.
        """

    def open(self, deployment: Deployment, threads: int) -> Session:
        """Loads a deployment.

        Args:
            deployment: what `build` returned, or an entry of a manifest with paths that open.
            threads: that one inference may use.

        Raises:
            LstmoptError: the runtime is not installed, or cannot load the file.
        """


def tensor_info(value: ir.Value) -> TensorInfo:
    """Describes an input or output of a graph, whose type is known."""
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return TensorInfo(str(value.name), np.dtype(value.dtype.numpy()), shape)


def check_feeds(inputs: tuple[TensorInfo, ...], feeds: Feeds) -> None:
    """Checks names, types and shapes of inputs.

    Raises:
        LstmoptError: one does not fit.
    """
    names = [info.name for info in inputs]
    for name in feeds:
        if name not in names:
            raise LstmoptError(
                f"input {name}", "the model has no such input", f"its inputs are: {', '.join(names)}"
            )
    for info in inputs:
        array = feeds.get(info.name)
        if array is None:
            raise LstmoptError(f"input {info.name}", "is missing", "give an array for every input")
        if array.dtype != info.dtype:
            raise LstmoptError(
                f"input {info.name}", f"has type {array.dtype}", f"the model takes {info.dtype}"
            )
        fits = len(array.shape) == len(info.shape) and all(
            want is None or want == have for want, have in zip(info.shape, array.shape, strict=True)
        )
        if not fits:
            wanted = [size if size is not None else "any" for size in info.shape]
            raise LstmoptError(
                f"input {info.name}", f"has shape {list(array.shape)}", f"the model takes {wanted}"
            )


def read_graph(model_file: Path) -> Any:
    """Returns the graph of an ONNX file, weights in other files left there.

    Raises:
        LstmoptError: the file is missing or is not ONNX.
    """
    import onnx

    try:
        return onnx.load(model_file, load_external_data=False).graph
    except OSError as error:
        raise LstmoptError(str(model_file), f"cannot be read ({error.strerror})", "check the path") from error
    except Exception as error:  # noqa: BLE001 - protobuf's error has no public base
        raise LstmoptError(str(model_file), "is not an ONNX model", "export the model to ONNX") from error


def declared_shapes(graph: Any) -> dict[str, tuple[int | str, ...]]:
    """Returns the shape of each input that a caller feeds, as an ONNX graph declares it."""
    defaults = {tensor.name for tensor in graph.initializer}
    return {
        value.name: tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        )
        for value in graph.input
        if value.name not in defaults
    }
