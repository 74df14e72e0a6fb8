"""An LSTM over torch's compressed sparse rows, as an expert would write it, for `benchmarks.kernels`.

W . x of all steps is one sparse product, R . h one a step. Where torch was built with MKL, as its wheels for
Linux on x86 are, these products are oneMKL's (`mkl_sparse_s_mv` for one sequence, which is faster, and
`mkl_sparse_s_mm`). The 8x4 kernel of Opus is missing: an inline function of that library, which no package
exports.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstmopt.rnn.weights import RnnWeights
from lstmopt.runtimes import Deployment

OPENER = "benchmarks.torch_csr:open_session"


def build(weights: RnnWeights, file: Path) -> Deployment:
    """Writes a forward layer for `open_session`."""
    assert weights.b is not None
    w, r = (matrix[0].reshape(-1, matrix.shape[-1]) for matrix in (weights.w, weights.r))
    np.savez(file, w=w, r=r, b=weights.b[0].sum(axis=0).reshape(-1))
    return Deployment(runtime="torch", file=file, precision="f32")


def open_session(deployment: Deployment, threads: int) -> TorchLstm:
    return TorchLstm(deployment.file, threads)


class TorchLstm:
    """A forward layer; gates i, o, f, c as in ONNX."""

    def __init__(self, file: Path, threads: int) -> None:
        import torch

        warnings.filterwarnings("ignore", message="Sparse CSR")  # its layout is called a beta
        torch.set_num_threads(threads)
        with np.load(file) as arrays:
            self._w, self._r = (torch.from_numpy(arrays[name]).to_sparse_csr() for name in ("w", "r"))
            self._b = torch.from_numpy(arrays["b"])[:, None]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": self.bind(feeds)().numpy()[:, None]}

    def bind(self, feeds: Mapping[str, Any]) -> Callable[[], Any]:
        import torch

        x, hidden = torch.from_numpy(feeds["x"]), self._r.shape[1]
        steps, batch, size = x.shape

        @torch.inference_mode()
        def call() -> Any:
            sums = self._w @ x.reshape(steps * batch, size).T + self._b
            # One row of memory for each sequence and step: [steps, 4 * hidden, batch].
            sums = sums.reshape(4 * hidden, steps, batch).transpose(0, 1).contiguous()
            h = c = torch.zeros(hidden, batch)
            y = torch.empty(steps, hidden, batch)
            for step in range(steps):
                if batch == 1:
                    gates = torch.addmv(sums[step, :, 0], self._r, h[:, 0])[:, None]
                else:
                    gates = torch.addmm(sums[step], self._r, h)
                i, o, f = gates[: 3 * hidden].sigmoid_().chunk(3)
                c = f * c + i * gates[3 * hidden :].tanh_()
                h = torch.mul(o, c.tanh(), out=y[step])
            return y.transpose(1, 2)

        return call
