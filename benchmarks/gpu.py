"""LSTMs on an NVIDIA GPU: latency against hidden size in cuDNN, and cuDNN beside other ways to run one layer.

    python benchmarks/gpu.py [--json build/gpu.json] [--png build/gpu.png] [--seconds 420]

Needs torch, numpy, and matplotlib for the picture. TensorRT (or TensorRT-RTX) and ONNX Runtime take part
where they and lstmopt can be imported. Exits with 0; with 1 where outputs are not those of float64; with 2
and one line where there is no GPU. --device cpu runs what is torch's on the CPU, to test this script: those
figures are none of a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

STEPS, BATCH = 35, 1
BATCHES = (1, 8)
"""Of the curves. Torch takes cuDNN's persistent kernels in f16 where 8 divides the batch, 128 the sizes."""

LARGEST = 2048
OFF = (-8, 8)
"""Distances from multiples of 64 measured too: cuDNN's choices depend on what divides the size."""
PEERS = (256, 392, 512, 1024)
LIMITS = {"f32": 1e-5, "f16": 1e-3}
"""Largest difference from float64, over the output's range."""
LEAST_STEP = 0.01

Launch = Callable[[], None]
Times = Callable[[Launch, int], list[float]]
"""Microseconds of so many calls."""


class Absent(Exception):
    """Something that cannot take part here, one line."""


@dataclass
class Layer:
    """A layer's weights as torch packs them (gates i, f, g, o), and inputs of one call."""

    w: np.ndarray
    r: np.ndarray
    b: np.ndarray
    x: np.ndarray

    @classmethod
    def random(cls, hidden: int, seed: int = 0) -> Layer:
        rng = np.random.default_rng(seed)
        scale = 1 / np.sqrt(hidden)
        draw = lambda *shape: rng.uniform(-scale, scale, shape).astype(np.float32)  # noqa: E731
        x = rng.standard_normal((STEPS, BATCH, hidden)).astype(np.float32)
        return cls(draw(4 * hidden, hidden), draw(4 * hidden, hidden), draw(4 * hidden), x)

    @property
    def hidden(self) -> int:
        return self.r.shape[1]

    def in_float64(self) -> np.ndarray:
        """Returns the outputs, [steps, batch, hidden]."""
        w, r, b, x = (array.astype(np.float64) for array in (self.w, self.r, self.b, self.x))
        h = c = np.zeros((x.shape[1], self.hidden))
        found = []
        for each in x:
            i, f, g, o = np.split(each @ w.T + h @ r.T + b, 4, axis=1)
            c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            h = np.tanh(c) / (1 + np.exp(-o))
            found.append(h)
        return np.stack(found)

    def module(self, torch: Any, precision: str, device: str) -> tuple[Any, Any]:
        """Returns torch's module and its input."""
        module = torch.nn.LSTM(self.hidden, self.hidden)
        named = {"weight_ih_l0": self.w, "weight_hh_l0": self.r, "bias_ih_l0": self.b}
        with torch.no_grad():
            module.bias_hh_l0.zero_()
            for name, array in named.items():
                getattr(module, name).copy_(torch.from_numpy(array))
        dtype = torch.float16 if precision == "f16" else torch.float32
        module = module.to(device, dtype).eval().requires_grad_(False)
        return module, torch.from_numpy(self.x).to(device, dtype)

    def error(self, outputs: np.ndarray) -> float:
        """Returns the largest difference from float64, over the output's range."""
        truth = self.in_float64()
        return float(np.abs(outputs.reshape(truth.shape) - truth).max() / np.ptp(truth))


@dataclass
class Deadline:
    """When to stop."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        return time.monotonic() - self.began > self.seconds


def event_times(torch: Any) -> Times:
    """Returns what times launches by CUDA events, copies apart."""

    def times(launch: Launch, calls: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        torch.cuda.synchronize()
        for start, end in pairs:
            start.record()
            launch()
            end.record()
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in pairs]

    return times


def clock_times(launch: Launch, calls: int) -> list[float]:
    """Times calls that wait for their result by the clock."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        launch()
        taken.append(1e6 * (time.perf_counter() - began))
    return taken


def captured(torch: Any, call: Launch) -> Launch:
    """Returns the replay of a CUDA graph of a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        raise Absent(f"it cannot be captured ({first_line(error)})") from error

    def replay(_: Any = call) -> None:  # the graph holds addresses alone: the call keeps what is there
        graph.replay()

    return replay


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def sizes(largest: int) -> list[int]:
    """Returns the hidden sizes of the curve: multiples of 64 and sizes beside them."""
    multiples = range(64, largest + 1, 64)
    return sorted({m + d for m in multiples for d in (0, *OFF) if 64 <= m + d <= largest})


def curve(
    torch: Any,
    device: str,
    precision: str,
    batch: int,
    dims: Sequence[int],
    deadline: Deadline,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measures cuDNN's latency at each size, in random order, round by round."""
    times = event_times(torch) if device == "cuda" else clock_times
    rng = np.random.default_rng(0)
    launches: dict[int, Launch] = {}
    samples: dict[int, list[float]] = {}
    for number in range(rounds):
        for dim in rng.permutation(dims).tolist():
            if number and deadline.passed:
                break
            if dim not in launches:
                call = any_layer(torch, device, precision, batch, dim)
                launches[dim] = captured(torch, call) if device == "cuda" else call
                times(launches[dim], 5)
            samples.setdefault(dim, []).append(float(np.median(times(launches[dim], 30))))
    latency = {dim: float(np.median(taken)) for dim, taken in sorted(samples.items())}
    spread = [np.ptp(taken) / np.median(taken) for taken in samples.values() if len(taken) > 1]
    resolution = float(np.median(spread)) / 2 if spread else 0.0
    points = hysteresis_points(latency, max(resolution, LEAST_STEP))
    return {"latency_us": latency, "samples": samples, "resolution": resolution, "points": points}


def any_layer(torch: Any, device: str, precision: str, batch: int, hidden: int) -> Launch:
    """Returns a call of a layer with torch's own first weights, made on the device."""
    dtype = torch.float16 if precision == "f16" else torch.float32
    module = torch.nn.LSTM(hidden, hidden, device=device, dtype=dtype).eval().requires_grad_(False)
    return bound(module, torch.randn(STEPS, batch, hidden, device=device, dtype=dtype))


def bound(module: Any, x: Any) -> Launch:
    def call() -> None:
        module(x)

    return call


def hysteresis_points(latency: dict[int, float], least: float) -> list[int]:
    """Returns, from the right, sizes below which the next smaller latency begins."""
    points = [max(latency)]
    for dim in sorted(latency, reverse=True):
        if latency[dim] < (1 - least) * latency[points[-1]]:
            points.append(dim)
    return points


def peers(torch: Any, device: str, precision: str, hidden: int) -> dict[str, Any]:
    """Measures every way to run one layer, and how far each is from float64."""
    layer = Layer.random(hidden)
    module, x = layer.module(torch, precision, device)
    times = event_times(torch) if device == "cuda" else clock_times
    error = layer.error(module(x)[0].float().cpu().numpy())
    ways: dict[str, Callable[[], tuple[Launch, Times, float]]] = {
        "torch eager": lambda: (bound(module, x), times, error)
    }
    if device == "cuda":
        ways["torch CUDA graph"] = lambda: (captured(torch, bound(module, x)), times, error)
        ways["torch.compile"] = lambda: compiled(torch, module, x, layer, times)
        ways["TensorRT"] = lambda: in_tensorrt(layer, precision, times, graph=False)
        ways["TensorRT CUDA graph"] = lambda: in_tensorrt(layer, precision, times, graph=True)
        for provider in ("CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider"):
            ways[f"ONNX Runtime {provider}"] = lambda p=provider: in_onnxruntime(torch, layer, precision, p)
    return {name: measured(way) for name, way in ways.items()}


def measured(way: Callable[[], tuple[Launch, Times, float]]) -> dict[str, Any]:
    """Returns latency and error of one way, or why there are none."""
    try:
        launch, times, error = way()
        times(launch, 20)
        taken = times(launch, 200)
    except Exception as fault:  # noqa: BLE001 - the libraries' exceptions have no common base
        return {"absent": first_line(fault)}
    return {
        "median_us": float(np.median(taken)), "p99_us": float(np.percentile(taken, 99)),
        "timer": "clock" if times is clock_times else "CUDA events", "error": error,
    }  # fmt: skip


def compiled(torch: Any, module: Any, x: Any, layer: Layer, times: Times) -> tuple[Launch, Times, float]:
    call = torch.compile(module, mode="reduce-overhead")
    outputs = call(x)[0].float().cpu().numpy()
    return bound(call, x), times, layer.error(outputs)


def written(layer: Layer, folder: Path) -> Path:
    """Writes a layer as ONNX.

    Raises:
        Absent: lstmopt is not there to write it.
    """
    try:
        from lstmopt.rnn.cells import LSTM
        from lstmopt.rnn.files import save_model
        from lstmopt.rnn.weights import RnnWeights
        from lstmopt.rnn.writer import rnn_model
    except ImportError as error:
        raise Absent(f"lstmopt cannot be imported ({first_line(error)})") from error
    order = [LSTM.torch_gates.index(gate) for gate in LSTM.gates]
    w, r = (array.reshape(1, 4, layer.hidden, layer.hidden)[:, order] for array in (layer.w, layer.r))
    one = layer.b.reshape(4, layer.hidden)[order]
    b = np.stack([one, np.zeros_like(one)])[None]
    weights = RnnWeights(cell=LSTM, direction="forward", w=w, r=r, b=b)
    file = folder / "layer.onnx"
    save_model(rnn_model(weights, sequence=STEPS, batch=BATCH), file)
    return file


def in_tensorrt(layer: Layer, precision: str, times: Times, *, graph: bool) -> tuple[Launch, Times, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = written(layer, Path(folder))
        from lstmopt.runtimes import runtime

        engine = runtime("tensorrt")
        status = engine.status()
        if not status.usable:
            raise Absent(status.reason)
        made = engine.build(file, precision, Path(folder) / "built", [{"x": layer.x}])
        session: Any = engine.open(made, 1)
        error = layer.error(session.run({"x": layer.x})["y"])
        launch = session.launcher({"x": layer.x}, graph=graph)
        if graph and not session.graphed:
            raise Absent("its engine cannot be captured in a CUDA graph")
        return launch, times, error


def in_onnxruntime(torch: Any, layer: Layer, precision: str, provider: str) -> tuple[Launch, Times, float]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Absent("not installed") from error
    if provider not in ort.get_available_providers():
        raise Absent("this build of ONNX Runtime is without it")
    with tempfile.TemporaryDirectory() as folder:
        file = written(layer, Path(folder))
        if precision == "f16":
            from lstmopt.rnn.files import load_model, save_model
            from lstmopt.rnn.half import Half
            from lstmopt.rnn.rewriting import rewrite

            save_model(rewrite(load_model(file), Half()), file)
        exact = {"use_tf32": "0"} if provider.startswith("CUDA") else {}
        session = ort.InferenceSession(str(file), providers=[(provider, exact)])
        if session.get_providers()[0] != provider:
            raise Absent("it does not load here")
        error = layer.error(np.asarray(session.run(["y"], {"x": layer.x})[0], np.float64))
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(layer.x, "cuda", 0))
        binding.bind_output("y", "cuda")
        # A call waits for its result, so the clock tells what CUDA events on torch's stream would not see.
        return lambda: session.run_with_iobinding(binding), clock_times, error


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes the curves with their points, and the peers, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for name, found in result["curves"].items():
        dims = sorted(found["latency_us"])
        (line,) = left.plot(dims, [found["latency_us"][d] for d in dims], linewidth=1, label=name)
        marks = found["points"]
        left.plot(marks, [found["latency_us"][d] for d in marks], "o", markersize=3, color=line.get_color())
    left.set(xlabel="hidden size", ylabel="latency, µs", title="cuDNN; dots: hysteresis points")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    for name, per_size in by_way(result["peers"]).items():
        right.plot(list(per_size), list(per_size.values()), "o-", linewidth=1, markersize=3, label=name)
    right.set(xlabel="hidden size", ylabel="latency, µs", title="one layer", yscale="log")
    if result["peers"]:
        right.legend(frameon=False, fontsize=7)
    told = f"{result['device']}, {STEPS} steps, peers at batch {BATCH}, torch {result['torch']}"
    figure.suptitle(told, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def by_way(found: Iterable[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns latency by way and precision, and hidden size."""
    ways: dict[str, dict[int, float]] = {}
    for row in found:
        for name, took in row["ways"].items():
            if "median_us" in took:
                ways.setdefault(f"{name} {row['precision']}", {})[row["hidden_size"]] = took["median_us"]
    return ways


def run(torch: Any, device: str, largest: int, chosen: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measures everything within about so many seconds; peers first, since they are few."""
    deadline = Deadline(seconds)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"no GPU: {platform.machine()} CPU",
        "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "steps": STEPS, "batch": BATCH, "batches": BATCHES, "peers": [], "curves": {}, "left_out": [],
    }  # fmt: skip
    with torch.inference_mode():
        for precision in LIMITS:
            for hidden in chosen:
                if deadline.passed:
                    result["left_out"].append(f"peers of {hidden} in {precision}")
                    continue
                ways = peers(torch, device, precision, hidden)
                result["peers"].append({"precision": precision, "hidden_size": hidden, "ways": ways})
        for batch, precision in product(BATCHES, LIMITS):
            name = f"{precision}, batch {batch}"
            if deadline.passed:
                result["left_out"].append(f"the curve of {name}")
                continue
            result["curves"][name] = curve(torch, device, precision, batch, sizes(largest), deadline)
    result["seconds"] = round(time.monotonic() - deadline.began, 1)
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """Returns what is further from float64 than allowed."""
    return [
        f"{name}, {row['precision']}, hidden size {row['hidden_size']}: {took['error']:.1e} from float64, "
        f"{LIMITS[row['precision']]:.0e} allowed"
        for row in result["peers"]
        for name, took in row["ways"].items()
        if "error" in took and not took["error"] <= LIMITS[row["precision"]]
    ]


def lines(result: dict[str, Any]) -> list[str]:
    """Returns what people read."""
    found = [f"{result['device']}, torch {result['torch']}, cuDNN {result['cudnn']}, {result['seconds']} s"]
    for row in result["peers"]:
        found.append(f"hidden size {row['hidden_size']}, {row['precision']}")
        for name, took in row["ways"].items():
            told = took.get("absent") or (
                f"median {took['median_us']:.1f} us, p99 {took['p99_us']:.1f} us ({took['timer']}), "
                f"{took['error']:.1e} from float64"
            )
            found.append(f"  {name}: {told}")
    for name, each in result["curves"].items():
        points = ", ".join(map(str, each["points"]))
        found.append(f"hysteresis points, {name} (resolution {each['resolution']:.1%}): {points}")
    return [*found, *(f"left out for time: {item}" for item in result["left_out"])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of LSTMs on an NVIDIA GPU.")
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--png", type=Path, default=Path("build/gpu.png"))
    parser.add_argument("--seconds", type=float, default=420.0, help="about how long it may take")
    parser.add_argument("--largest", type=int, default=LARGEST, help="largest hidden size of the curve")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(PEERS), help="hidden sizes of the peers")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to test this script")
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit(fail("torch: not installed; install it from PyTorch's CUDA index"))
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(fail("no NVIDIA GPU that torch can use here; run it where there is one"))
    # So that lstmopt is found beside this file, installed or not.
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
    result = run(torch, options.device, options.largest, options.sizes, options.seconds)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(result)))
    try:
        plot(result, options.png)
    except ImportError:
        print("no picture: matplotlib is not installed")
    wrong = faults(result)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


def fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
