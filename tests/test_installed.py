"""The wheel in an environment that knows nothing of the checkout, built with a C++ compiler and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import lstmopt
from lstmopt.report.schema import Manifest
from lstmopt.rnn.execution import Reference
from lstmopt.rnn.files import load_model, save_model
from lstmopt.rnn.writer import rnn_model
from lstmopt.runtimes import open_session
from lstmopt.runtimes.ops.libraries import NAMES
from tests.needed import missing
from tests.ops import error, random_layer
from tests.test_cli_errors import refused

pytestmark = pytest.mark.deep
ROOT = Path(lstmopt.__file__).parents[1]


def built(folder: Path, **variables: str) -> Path:
    """Returns the wheel of this checkout, built with some environment variables."""
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path, folder: Path) -> Path:
    """Returns the program `lstmopt` of a fresh environment, which shares what lstmopt depends on."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--quiet",
        str(wheel),
    ]
    subprocess.run(command, check=True)
    # As a plain path: what an editable install hooks in there stays out.
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    found = subprocess.run(
        [python, "-c", "import lstmopt; print(lstmopt.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert Path(found.stdout.strip()).is_relative_to(folder)
    return folder / "bin" / "lstmopt"


def call(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (program, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=program.parent)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of which one weight in ten is not zero."""
    layer = random_layer(np.random.default_rng(0), hidden=128, inputs=128, density=0.1, plain=True)
    path = tmp_path_factory.mktemp("model") / "layer.onnx"
    save_model(rnn_model(layer), path)
    return path


def test_the_wheel_works_elsewhere(model: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        missing("a C++ compiler")
    wheel = built(tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}
    assert len(libraries) == len(NAMES)
    for name, content in libraries.items():
        for path in (ROOT, tmp_path, Path.home()):
            assert str(path).encode() + b"/" not in content, f"{name} names {path}"
    program = installed(wheel, tmp_path / "fresh")
    original = load_model(model)
    feeds = {"x": np.random.default_rng(1).standard_normal((9, 2, 128)).astype(np.float32)}
    truth = Reference(original).run(feeds)["y"]
    for runtime in NAMES:
        out = tmp_path / runtime
        done = call(program, "export", model, "--runtime", runtime, "--format", "i8", "-o", out)
        assert done.returncode == 0, done.stderr
        (entry,) = Manifest.load(out / "manifest.json").deployments(out)
        assert entry.precision == "sparse-i8" and len(entry.libraries) == 1
        assert error(open_session(entry, 1).run(feeds)["y"], truth) < 0.02


def test_without_a_compiler_the_rest_is_installed(model: Path, tmp_path: Path) -> None:
    wheel = built(tmp_path / "wheel", CXX=str(tmp_path / "none"))
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    program = installed(wheel, tmp_path / "fresh")
    told = call(program, "doctor")
    assert told.returncode == 0 and "build-ops" in " ".join(told.stdout.split()), told.stdout
    for runtime in NAMES:
        out = tmp_path / runtime
        refused(
            call(program, "export", model, "--runtime", runtime, "--format", "i8", "-o", out),
            "sparse",
            "build-ops",
        )
        done = call(program, "export", model, "--runtime", runtime, "--format", "f32", "-o", out)
        assert done.returncode == 0, done.stderr
