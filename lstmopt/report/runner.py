"""The text of an artifact's `run.py`: this package's own `run.py` as it is, which needs nothing of it."""

from __future__ import annotations

from importlib.resources import files


def run_script() -> str:
    """Returns the script."""
    return files("lstmopt.report").joinpath("run.py").read_text(encoding="utf-8")
