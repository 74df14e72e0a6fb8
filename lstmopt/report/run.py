"""Loads this artifact's best file, checks its outputs and times it, with the file's runtime and numpy alone.

    python run.py [--runtime openvino|onnxruntime] [--threads N] [--iterations N] [--json]

For streaming, `Stream` keeps the model's states from call to call.

Exits with 0 where the outputs are those that were recorded when the artifact was made, 1 where they are
not, 2 where nothing can be run here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
# The folders openvino/ and onnxruntime/ beside this file would be found as packages of these names.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

try:
    import numpy as np
except ImportError:
    print("error: numpy: not installed; pip install numpy", file=sys.stderr)
    sys.exit(2)

TOLERANCES = {
    "f32": 1e-3, "f16": 1e-2, "bf16": 3e-2, "int8": 5e-2,
    "sparse-f32": 1e-3, "sparse-i16": 1e-2, "sparse-i8": 5e-2,
}  # fmt: skip
"""Root mean square difference from the recorded outputs, over their root mean square, by precision.

Between two machines f32 differs by 1e-5 a window; differences grow where states are fed back."""

TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}

Arrays = dict[str, Any]


class Fault(Exception):
    """Something that keeps the artifact from running here, one line."""


def read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    The format: 8 bytes little-endian length of a JSON header, the header, the tensors' bytes.

    Raises:
        Fault: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            raw = data[8 + length + first : 8 + length + last]
            # A copy, since runtimes take no arrays that cannot be written to.
            tensors[name] = np.frombuffer(raw, TYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    except OSError as error:
        raise Fault(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(f"{path.name}: damaged ({error}); make the artifact again") from None
    return tensors, metadata


def difference(expected: Any, got: Any) -> float:
    """Returns how far outputs are from those expected.

    Args:
        expected: arrays of one output, one a window.
        got: arrays of the same output.

    Returns:
        Root mean square of the difference over that of the expected values; for integers and booleans
        the share that differs. Infinite where shapes differ or one has a NaN that the other has not.
    """
    if len(expected) != len(got):
        return float("inf")
    square, scale, unequal, total = 0.0, 0.0, 0, 0
    exact = True
    for index in range(len(expected)):
        one, other = np.asarray(expected[index]), np.asarray(got[index])
        if one.shape != other.shape:
            return float("inf")
        exact = one.dtype.kind not in "fc"
        total += one.size
        unequal += int(np.sum(one != other))
        if exact:
            continue
        one, other = one.astype(np.float64), other.astype(np.float64)
        # Equal infinities, as of masked log-probabilities, do not differ.
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        finite = np.isfinite(one)
        if not np.all(same | (finite & np.isfinite(other))):
            return float("inf")
        square += float(np.sum((other[~same] - one[~same]) ** 2))
        scale += float(np.sum(one[finite] ** 2))
    if exact:
        return unequal / total if total else 0.0
    if square == 0.0:
        return 0.0
    return float(np.sqrt(square / scale)) if scale else float("inf")


def finite(value: float) -> float | None:
    """Returns a number that JSON can hold, or None."""
    return value if np.isfinite(value) else None


class OnnxRuntime:
    """A file loaded in ONNX Runtime."""

    def __init__(self, entry: dict[str, Any], threads: int) -> None:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in entry.get("settings", {}).items():
            options.add_session_config_entry(key, value)
        for library in entry.get("libraries", ()):
            options.register_custom_ops_library(str(HERE / library))
        self.version = ort.__version__
        self._session = ort.InferenceSession(
            str(HERE / entry["file"]), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]
        self._value = ort.OrtValue
        self._states: Arrays = {}

    def types(self) -> dict[str, Any]:
        """Returns the inputs' numpy types by name."""
        short = {"float": "float32", "double": "float64"}
        names = {item.name: item.type[7:-1] for item in self._session.get_inputs()}
        return {name: np.dtype(short.get(kind, kind)) for name, kind in names.items()}

    def reset(self, states: Arrays) -> None:
        """Sets the states of the next `step`."""
        self._states = {name: self._value.ortvalue_from_numpy(array) for name, array in states.items()}

    def step(self, feeds: Arrays, pairs: list[dict[str, Any]]) -> Arrays:
        """Returns the real outputs; the states stay where the runtime has put them."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.asarray(array, order="C"))
        for name, value in self._states.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        results = {name: values[index] for index, name in enumerate(self.outputs)}
        self._states = {pair["input"]: results.pop(pair["output"]) for pair in pairs}
        return {name: value.numpy() for name, value in results.items()}

    def run(self, feeds: Arrays) -> Arrays:
        """Returns all outputs by name."""
        results = self._session.run(self.outputs, feeds)
        return {name: np.asarray(results[index]) for index, name in enumerate(self.outputs)}

    def bind(self, feeds: Arrays) -> Callable[[], Any]:
        """Returns one call on these inputs."""
        binding = self._session.io_binding()
        for name in self.inputs:
            binding.bind_cpu_input(name, np.asarray(feeds[name], order="C"))
        for name in self.outputs:
            binding.bind_output(name)

        def call() -> None:
            self._session.run_with_iobinding(binding)

        def call_anew() -> None:
            binding.clear_binding_outputs()
            for name in self.outputs:
                binding.bind_output(name)
            call()

        # Outputs of the call before are held against the ranks that the graph declares, which some
        # graphs declare wrongly.
        try:
            call()
            call()
        except Exception:
            return call_anew
        return call


def port_name(port: Any) -> str:
    """Returns ONNX's name of an input or output of a file."""
    return str(min(port.get_names(), key=lambda name: (":" in name, len(name), name)))


class OpenVino:
    """A file compiled by OpenVINO for the CPU."""

    def __init__(self, entry: dict[str, Any], threads: int) -> None:
        # Its import reports itself over the network, and may hang without one.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        ov = importlib.import_module("openvino")
        core = ov.Core()
        for library in entry.get("libraries", ()):
            core.add_extension(str(HERE / library))
        settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": "NO",
        }
        settings.update(entry.get("settings", {}))
        self.version = ov.__version__
        self._tensor = ov.Tensor
        # Compiling may give tensors further names: those of the file count.
        written = core.read_model(str(HERE / entry["file"]))
        self._model = core.compile_model(written, "CPU", settings)
        self._request = self._model.create_infer_request()
        self.inputs = [port_name(port) for port in written.inputs]
        self.outputs = [port_name(port) for port in written.outputs]
        self._states: Arrays = {}

    def types(self) -> dict[str, Any]:
        """Returns the inputs' numpy types by name."""
        ports = zip(self.inputs, self._model.inputs, strict=True)
        return {name: np.dtype(port.get_element_type().to_dtype()) for name, port in ports}

    def reset(self, states: Arrays) -> None:
        """Sets the states of the next `step`, and those that the model keeps inside to zero."""
        self._states = states
        self._request.reset_state()

    def step(self, feeds: Arrays, pairs: list[dict[str, Any]]) -> Arrays:
        """Returns the real outputs; states that are not inside are carried."""
        results = self.run({**feeds, **self._states})
        self._states = {pair["input"]: results.pop(pair["output"]) for pair in pairs}
        return results

    def run(self, feeds: Arrays) -> Arrays:
        """Returns all outputs by name."""
        results = self._request.infer(feeds)
        return {name: np.array(results[index]) for index, name in enumerate(self.outputs)}

    def bind(self, feeds: Arrays) -> Callable[[], Any]:
        """Returns one call on these inputs."""
        kept = [np.asarray(feeds[name], order="C") for name in self.inputs]
        for index, array in enumerate(kept):
            self._request.set_tensor(self._model.inputs[index], self._tensor(array, shared_memory=True))
        request = self._request

        def call(_: Any = kept) -> None:
            request.infer(share_outputs=True)

        return call


LOADERS: dict[str, Any] = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}


def installed(runtime: str) -> bool:
    """Returns whether a runtime can be imported."""
    try:
        module = importlib.import_module(PACKAGES[runtime])
    except (ImportError, KeyError):
        return False
    return getattr(module, "__file__", None) is not None


def choose(manifest: dict[str, Any], runtime: str | None) -> tuple[int, dict[str, Any]]:
    """Returns the place in the list and the entry of the best file that can be loaded here.

    Raises:
        Fault: there is none.
    """
    entries = list(enumerate(manifest["deploy"]))
    names = sorted({entry["runtime"] for _, entry in entries})
    if runtime is not None:
        entries = [item for item in entries if item[1]["runtime"] == runtime]
        if not entries:
            raise Fault(f"--runtime {runtime}: the artifact has no file for it; it has {', '.join(names)}")
    for place, entry in entries:
        if installed(entry["runtime"]):
            return place, entry
    for place, entry in entries:
        # This script has no loader for runtimes of GPUs; what they load is ONNX.
        if entry["runtime"] not in LOADERS and installed("onnxruntime"):
            return place, {**entry, "runtime": "onnxruntime", "settings": {}, "instead_of": entry["runtime"]}
    wanted = entries[0][1]["runtime"]
    raise Fault(f"{wanted}: not installed; pip install {PACKAGES.get(wanted, wanted)}")


class Stream:
    """A model that keeps its states from call to call, in the best runtime that is installed.

        stream = Stream()
        outputs = stream({"x": chunk})  # by name, without states
        stream.reset()  # before another stream

    Args:
        runtime: "openvino" or "onnxruntime"; the best file's that is installed where None.
        threads: of one call; as many as the artifact was measured with where None.
        batch: sequences of a call, where the states' shapes leave them open.

    Raises:
        Fault: nothing can be run here, or the model has no states.
    """

    def __init__(self, runtime: str | None = None, threads: int | None = None, batch: int = 1) -> None:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        _, entry = choose(manifest, runtime)
        self._pairs: list[dict[str, Any]] = manifest.get("states", [])
        if not self._pairs:
            raise Fault("manifest.json: the model has no states; call it by itself")
        self._batch = batch
        shapes = {pair["input"]: self._shape(pair) for pair in self._pairs}
        for inside in manifest.get("stateful", ()):
            # A model that keeps its states inside was made for one batch.
            if inside["runtime"] == entry["runtime"] and inside["states"] == shapes:
                entry, self._pairs = inside, []
        self._session = LOADERS[entry["runtime"]](entry, threads or manifest.get("threads", 1))
        self.reset()

    def _shape(self, pair: dict[str, Any]) -> list[int]:
        return [size if isinstance(size, int) else self._batch for size in pair["shape"]]

    def reset(self) -> None:
        """Sets all states to zero: what comes next is another stream."""
        types = self._session.types()
        self._session.reset(
            {pair["input"]: np.zeros(self._shape(pair), types[pair["input"]]) for pair in self._pairs}
        )

    def __call__(self, feeds: Arrays) -> Arrays:
        """Returns the outputs of one call by name, without the states.

        Args:
            feeds: the inputs by name, without the states.
        """
        outputs: Arrays = self._session.step(feeds, self._pairs)
        return outputs


def play(session: Any, windows: list[Arrays], states: list[dict[str, str]]) -> list[Arrays]:
    """Runs windows one after the other, each with the states that the one before left."""
    played: list[Arrays] = []
    for feeds in windows:
        carried = {pair["input"]: played[-1][pair["output"]] for pair in states} if played else {}
        played.append(session.run({**feeds, **carried}))
    return played


def steps(tensors: Arrays, prefix: str, count: int) -> list[Arrays]:
    """Returns the tensors of one kind, by name, one mapping a window."""
    windows = []
    for step in range(count):
        head = f"{prefix}.{step}."
        windows.append({name[len(head) :]: tensors[name] for name in tensors if name.startswith(head)})
    return windows


def time_calls(call: Callable[[], Any], iterations: int | None) -> dict[str, float]:
    """Returns the latency of one call in microseconds; about two seconds of calls where not said how many."""
    for _ in range(3):
        call()
    began = time.perf_counter()
    call()
    once = max(time.perf_counter() - began, 1e-7)
    wanted = iterations or int(min(20000, max(50, 2.0 / once)))
    samples = np.empty(wanted)
    for index in range(wanted):
        began = time.perf_counter()
        call()
        samples[index] = time.perf_counter() - began
    p10, median, p90, p99 = np.percentile(samples * 1e6, (10, 50, 90, 99))
    return {
        "median": float(median),
        "p10": float(p10),
        "p90": float(p90),
        "p99": float(p99),
        "samples": wanted,
    }


def check(runtime: str | None, threads: int | None, iterations: int | None) -> dict[str, Any]:
    """Loads, checks and times; returns what was found.

    Raises:
        Fault: nothing can be run here.
    """
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        place, entry = choose(manifest, runtime)
        precision, used = entry["precision"], threads or manifest.get("threads", 1)
    except OSError as error:
        raise Fault(f"manifest.json: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(f"manifest.json: damaged ({error}); make the artifact again") from None
    tensors, metadata = read_safetensors(HERE / "golden.safetensors")
    try:
        count, prefixes = int(metadata["steps"]), json.loads(metadata["optimized"])
        prefix = prefixes[place]
    except (ValueError, KeyError, IndexError) as error:
        raise Fault(f"golden.safetensors: damaged ({error}); make the artifact again") from None
    windows = steps(tensors, "input", count)
    original, expected = steps(tensors, "original", count), steps(tensors, prefix, count)
    try:
        session = LOADERS[entry["runtime"]](entry, used)
        played = play(session, windows, manifest.get("states", []))
        latency = time_calls(session.bind(windows[0]), iterations)
    except Exception as error:  # the runtimes' exceptions have no common base
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Fault(f"{entry['file']}: {entry['runtime']} cannot run it ({line})") from None
    tolerance = TOLERANCES.get(precision, TOLERANCES["int8"])
    outputs = {}
    for name in expected[0]:
        got = [window.get(name, np.empty(0)) for window in played]
        off = difference([window[name] for window in expected], got)
        outputs[name] = {
            "difference": finite(off),
            "passed": bool(off <= tolerance),
            # None where the shape is another, as of the states of a layer that has fewer units.
            "difference_from_original": finite(difference([window[name] for window in original], got)),
        }
    return {
        "file": entry["file"],
        "runtime": entry["runtime"],
        "version": session.version,
        "instead_of": entry.get("instead_of"),
        "precision": precision,
        "threads": used,
        "windows": count,
        "states": bool(manifest.get("states")),
        "tolerance": tolerance,
        "outputs": outputs,
        "passed": bool(outputs) and all(result["passed"] for result in outputs.values()),
        "latency_us": latency,
    }


def table(result: dict[str, Any]) -> str:
    """Returns what people read."""
    instead = result["instead_of"]
    width = max(12, *(len(name) for name in result["outputs"]))
    lines = [
        f"{result['file']}  {result['runtime']} {result['version']}, {result['precision']}, "
        f"{result['threads']} thread{'s' if result['threads'] != 1 else ''}",
        "",
        f"{'output':<{width}}  {'from recorded':>13}  {'allowed':>8}  {'from original':>13}",
    ]
    for name, output in result["outputs"].items():
        recorded, original = (
            "-" if output[key] is None else f"{output[key]:.2e}"
            for key in ("difference", "difference_from_original")
        )
        lines.append(
            f"{name:<{width}}  {recorded:>13}  {result['tolerance']:>8.0e}  {original:>13}  "
            f"{'ok' if output['passed'] else 'DIFFERS'}"
        )
    latency = result["latency_us"]
    lines += [
        "",
        f"differences are relative root mean squares over {result['windows']} windows"
        f"{', states fed back' if result['states'] else ''}",
        f"latency of a call in µs: median {latency['median']:,.1f}, p10 {latency['p10']:,.1f}, "
        f"p90 {latency['p90']:,.1f}, p99 {latency['p99']:,.1f} ({latency['samples']} calls)",
        *([f"run in the place of {instead}: the latency says nothing about that"] if instead else []),
        "passed" if result["passed"] else "FAILED: outputs are not those of the artifact",
    ]
    return "\n".join(lines)


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def fail(line: str) -> NoReturn:
    """Ends with one line."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Reads the options, checks, prints."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(description="Checks and times this artifact with its runtime alone.")
    parser.add_argument("--runtime", choices=sorted(LOADERS), help="the best file's that is installed")
    parser.add_argument("--threads", type=positive, help="as many as the artifact was measured with")
    parser.add_argument("--iterations", type=positive, help="timed calls; about two seconds of them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        result = check(options.runtime, options.threads, options.iterations)
    except Fault as fault:
        fail(str(fault))
    print(json.dumps(result, indent=2) if options.json else table(result))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
