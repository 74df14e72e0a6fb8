"""torch on an NVIDIA GPU: whole models and single layers, replayed as CUDA graphs.

`TORCH` runs recurrent layers as torch's modules do: what a GPU's users have, to be measured against.
`CUDNN` also asks cuDNN for the kernels that torch does not ask for, to be probed and deployed in. Layers in
a row run in the form that is fastest for the call (`bridge.deployed`). `ON_CPU` stands in for both where
there is no GPU: the same graph in the same precision, for accuracy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model, save_model
from lstmopt.runtimes import cuda
from lstmopt.runtimes.base import AHEAD, Deployment, Feeds, RuntimeStatus, declared_shapes, read_graph
from lstmopt.runtimes.cudnn_session import CuDnnSession, torch_for

PRECISIONS = ("f32", "f16")


@dataclass(frozen=True)
class CuDnn:
    """The runtime.

    Attributes:
        name: as targets name it.
        forms: those in which layers may run.
        device: "cuda", or "cpu".
    """

    name: str
    forms: tuple[str, ...]
    device: str = "cuda"

    def status(self) -> RuntimeStatus:
        """Says whether it can be used here."""
        if find_spec("torch") is None:
            return RuntimeStatus(self.name, False, "", (), "torch is not installed: pip install torch")
        if self.device == "cuda" and (told := cuda.fault()):
            return RuntimeStatus(self.name, False, "", (), f"{told}; {AHEAD}", PRECISIONS)
        named = f"torch {version('torch')}"
        if self.device == "cuda":
            import torch

            named = f"{torch.backends.cudnn.version()} ({named})"  # type: ignore[no-untyped-call]
        return RuntimeStatus(self.name, True, named, PRECISIONS, ahead=PRECISIONS)

    def precisions(self) -> tuple[str, ...]:
        """Returns f32 and f16; nothing where there is no GPU."""
        return self.status().precisions

    def build(
        self, model_file: Path, precision: str, folder: Path, calls: Sequence[Feeds] = ()
    ) -> Deployment:
        """Copies the model; torch makes of it what it runs when the file is opened.

        Args:
            model_file: an ONNX file.
            precision: "f32" or "f16".
            folder: where it goes.
            calls: inputs, the most frequent first. Where it can run here, the form that is fastest for
                these is the setting ``form``.

        Raises:
            LstmoptError: a precision other than f32 and f16, an operator that torch is not given or does
                not run there, or a weight beyond f16.
        """
        if precision not in PRECISIONS:
            raise LstmoptError(f"precision {precision}", f"{self.name} does not run it", "use f32 or f16")
        torch_for(self.name)
        from lstmopt.bridge.deployed import DeployedModule

        read_graph(model_file)
        model = load_model(model_file)
        DeployedModule(model, precision, "cpu", self.forms[:1])
        file = folder / "model.onnx"
        save_model(model, file)
        shapes = declared_shapes(read_graph(file))
        made = Deployment(runtime=self.name, file=file, precision=precision, input_shapes=shapes)
        if not calls or not self.status().usable:
            return made
        session = CuDnnSession(made, self.device, self.forms)
        session.run(calls[0])
        return made.model_copy(update={"settings": {"form": session.form}})

    def open(self, deployment: Deployment, threads: int) -> CuDnnSession:
        """Loads a deployment; threads mean nothing on a GPU."""
        if self.device == "cuda":
            cuda.require(self.name)
        return CuDnnSession(deployment, self.device, self.forms)


TORCH = CuDnn("torch-cuda", ("apart", "stacked"))
CUDNN = CuDnn("cudnn", ("apart", "stacked", "padded", "persistent"))
ON_CPU = CuDnn("torch-cpu", ("apart",), "cpu")
