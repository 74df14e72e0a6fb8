"""Where the ops' libraries are."""

from __future__ import annotations

import hashlib
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lstmopt.errors import LstmoptError

SOURCES = Path(__file__).parent
FOLDER = "lib"
NAMES = {"openvino": "liblstmopt_openvino.so", "onnxruntime": "liblstmopt_onnxruntime.so"}
BUILT_FOR = "openvino-version.txt"
"""A file beside the libraries: the version of OpenVINO whose headers they were built with."""

ABSENT = "its native ops were not built: no C++ compiler or no CMake when lstmopt was installed"
MEND = "install g++ (or clang++) and cmake, then run lstmopt build-ops"


def folders() -> tuple[Path, ...]:
    """Returns where the libraries may be: in the package, or where an editable install puts them."""
    installed = Path(sysconfig.get_path("platlib")) / "lstmopt" / "runtimes" / "ops" / FOLDER
    return tuple(dict.fromkeys((SOURCES / FOLDER, installed)))


def library(runtime: str) -> Path:
    """Returns the library of a runtime.

    Args:
        runtime: "openvino" or "onnxruntime".

    Raises:
        LstmoptError: there is none for it, it was not built, or not for the installed OpenVINO.
    """
    if runtime not in NAMES:
        raise LstmoptError(runtime, "has no native ops", f"they are for {' and '.join(NAMES)}")
    found = [folder / NAMES[runtime] for folder in folders() if (folder / NAMES[runtime]).is_file()]
    if not found:
        raise LstmoptError(runtime, ABSENT, MEND)
    if runtime == "openvino":
        built, have = built_for(found[0].parent), _installed()
        if have and built != have:
            raise LstmoptError(
                runtime,
                f"its native ops were built for OpenVINO {built}, OpenVINO {have} is installed",
                f"run lstmopt build-ops, or pip install openvino=={built}",
            )
    return found[0]


def copy_library(runtime: str, folder: Path) -> Path:
    """Puts a runtime's library into a folder, beside a model that needs it; returns where it lies.

    Raises:
        LstmoptError: see `library`.
    """
    source = library(runtime)
    place = folder / source.name
    beside = place.with_suffix(".new")
    try:
        shutil.copyfile(source, beside)
        beside.replace(place)  # one that was there may be loaded: its file must not change
    finally:
        beside.unlink(missing_ok=True)
    return place


def available(runtime: str) -> bool:
    """Whether a runtime's library can be used."""
    return not absent(runtime)


def absent(runtime: str) -> str:
    """Returns why a runtime's library cannot be used, and how to mend it, in one line; "" where it can."""
    try:
        library(runtime)
    except LstmoptError as error:
        return f"{runtime} runs no sparse ops: {error.fault}; {error.mend}"
    return ""


def digest() -> str:
    """Returns a hash of the libraries that can be used, hexadecimal."""
    state = hashlib.sha256()
    for runtime in NAMES:
        if available(runtime):
            state.update(library(runtime).read_bytes())
    return state.hexdigest()


def built_for(folder: Path) -> str:
    """Returns the version of OpenVINO that the libraries of a folder were built for."""
    file = folder / BUILT_FOR
    return file.read_text(encoding="utf-8").strip() if file.is_file() else "unknown"


def _installed() -> str:
    """Returns the version of the installed OpenVINO, as far as its library's name tells versions apart."""
    try:
        return ".".join(version("openvino").split(".")[:3])
    except PackageNotFoundError:
        return ""
