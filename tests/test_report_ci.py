"""docs/ci.md and action.yml: their commands are ones that `lstmopt` takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmopt.cli import cli

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
GUIDE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Returns the options that a call of `lstmopt` sets; raises where it would be refused."""
    command = cli.commands[arguments[0]]
    context = command.make_context(arguments[0], list(arguments[1:]))
    values: dict[str, Any] = context.params
    return values


def guide_commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("lstmopt ")]


@pytest.mark.parametrize("arguments", guide_commands(), ids=" ".join)
def test_commands_of_the_guide(arguments: list[str]) -> None:
    assert parsed(arguments)


def test_the_guide_has_the_verbs_of_a_job() -> None:
    assert {arguments[0] for arguments in guide_commands()} == {"optimize", "verify", "probe"}


def test_the_guide_s_workflow_gives_inputs_of_the_action() -> None:
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)[1])  # type: ignore[index]
    given = workflow["jobs"]["optimise"]["steps"][-1]["with"]
    assert given.keys() <= ACTION["inputs"].keys()
    for name in ACTION["inputs"]:
        assert f"`{name}`" in GUIDE or name == "python-version"


def test_no_registry_s_host_in_either() -> None:
    text = GUIDE + (ROOT / "action.yml").read_text(encoding="utf-8")
    assert not re.search(r"https?://|\b(?:pypi|pytorch|anaconda)\.org\b", text)


def test_only_targets_that_are_there_are_offered() -> None:
    from lstmopt.targets import shipped_targets

    named = re.findall(r"\b(?:xeon|local|nvidia|cudnn)\b", ACTION["inputs"]["target"]["description"] + GUIDE)
    assert set(named) == set(shipped_targets())


def test_tables_of_another_target_are_not_restored() -> None:
    restore, save = (step for step in ACTION["runs"]["steps"] if "actions/cache" in step.get("uses", ""))
    key = restore["with"]["key"]
    assert key == save["with"]["key"] and "restore-keys" not in restore["with"]
    for part in ("steps.here.outputs.key", "hashFiles(inputs.model)", "hashFiles(inputs.target)"):
        assert f"${{{{ {part} }}}}" in key
    assert "${{ inputs.target }}" in key, "one that ships with the package is no file"


def test_action_is_composite() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert {
        "model",
        "target",
        "data",
        "max-degradation",
        "budget",
        "latency-table",
        "baseline",
        "max-slowdown",
    } <= ACTION["inputs"].keys()
    steps = ACTION["runs"]["steps"]
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        assert "run" not in step or step["shell"] == "bash"
        # What a user gives reaches the shell as variables: pasted into a script, it would be run.
        assert "${{" not in step.get("run", "")
    used = set(re.findall(r"inputs\.([a-z-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == ACTION["inputs"].keys()
    names = [step.get("name", step.get("uses", "")) for step in steps]
    order = [
        next(i for i, name in enumerate(names) if word in name)
        for word in ("Install", "Restore", "Optimise", "Verify", "Upload")
    ]
    assert order == sorted(order) and steps[order[-1]]["if"] == "always()"


def recorded(step: str, environment: dict[str, str], folder: Path) -> tuple[list[list[str]], str]:
    """Runs a step as the runner does, with a recorder as `lstmopt`; returns its calls and the output."""
    script = next(item["run"] for item in ACTION["runs"]["steps"] if item.get("name") == step)
    recorder = folder / "bin" / "lstmopt"
    recorder.parent.mkdir(exist_ok=True)
    record = f"print(json.dumps(sys.argv[1:]), file=open({str(folder / 'calls')!r}, 'a'))"
    recorder.write_text(f"#!{sys.executable}\nimport json, sys\n{record}\n")
    recorder.chmod(recorder.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
        env={"PATH": f"{recorder.parent}:{os.environ['PATH']}", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = folder / "calls"
    return [
        json.loads(line) for line in calls.read_text().splitlines()
    ] if calls.exists() else [], done.stdout


def defaults(step: str, **given: str) -> dict[str, str]:
    """Returns a step's environment with the inputs' defaults."""
    variables = next(item["env"] for item in ACTION["runs"]["steps"] if item.get("name") == step)
    return {
        name: given.get(name, str(ACTION["inputs"][match[1]].get("default", "")))
        for name, value in variables.items()
        if (match := re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value))
    }


@pytest.mark.deep
def test_tables_of_other_versions_are_not_restored(tmp_path: Path) -> None:
    def key(versions: str) -> str:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        wrapped = f"import sys, lstmopt.keys as keys; {versions}; exec(sys.argv[1])"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{wrapped}" "$2"\n')
        python.chmod(0o755)
        output = tmp_path / "output"
        output.write_text("")
        environment = {"GITHUB_OUTPUT": str(output), "PYTHONPATH": str(ROOT)}
        recorded("Name this CPU and the versions", environment, tmp_path)
        found = re.fullmatch(r"key=([0-9a-f]{16})\n", output.read_text())
        assert found
        return found[1]

    here, older = "pass", "keys.versions = lambda: dict(openvino='2020.1')"
    assert key(here) == key(here) != key(older)


def test_optimise_step(tmp_path: Path) -> None:
    (calls, _) = recorded("Optimise", defaults("Optimise", MODEL="my model.onnx"), tmp_path)
    values = parsed(calls[0])
    assert values["model"] == Path("my model.onnx") and values["target"] == "xeon" and values["data"] is None
    assert tuple(values["latency_tables"]) == ()

    (tmp_path / "calls").unlink()
    (tmp_path / ".lstmopt-latency").mkdir(exist_ok=True)
    (tmp_path / ".lstmopt-latency" / "lstm 0.json").write_text("{}")
    (tmp_path / "out" / "latency").mkdir(parents=True)
    (tmp_path / "out" / "latency" / "lstm_1.json").write_text("{}")
    given = {
        "MODEL": "m.onnx",
        "DATA": "d.npz",
        "VAL": "v.npz",
        "MAX_DEGRADATION": "2%",
        "BUDGET": "10m",
        "OUTPUT": "out",
    }
    (calls, _) = recorded("Optimise", defaults("Optimise", **given), tmp_path)
    values = parsed(calls[0])
    assert (values["data"], values["val"], values["max_degradation"], values["budget"]) == (
        "d.npz",
        "v.npz",
        0.02,
        600,
    )
    assert [path.name for path in values["latency_tables"]] == ["lstm 0.json"]
    assert (tmp_path / ".lstmopt-latency" / "lstm_1.json").is_file()

    (tmp_path / "calls").unlink()
    (calls, _) = recorded(
        "Optimise", defaults("Optimise", MODEL="m.onnx", LATENCY_TABLE="a.json\nb c.json\n"), tmp_path
    )
    assert [path.name for path in parsed(calls[0])["latency_tables"]] == ["a.json", "b c.json"]


def test_verify_step(tmp_path: Path) -> None:
    (calls, out) = recorded("Verify", defaults("Verify", OUTPUT="out"), tmp_path)
    assert parsed(calls[0])["baseline"] is None and "warning" not in out
    (tmp_path / "calls").unlink()
    (calls, out) = recorded("Verify", defaults("Verify", OUTPUT="out", BASELINE="old"), tmp_path)
    assert parsed(calls[0])["baseline"] is None and "::warning::" in out
    (tmp_path / "calls").unlink()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    (calls, _) = recorded("Verify", defaults("Verify", OUTPUT="out", BASELINE="old"), tmp_path)
    values = parsed(calls[0])
    assert values["baseline"] == Path("old") and values["max_slowdown"] == 0.05


def test_exit_codes_of_the_guide() -> None:
    from lstmopt.errors import ContractError, LstmoptError

    table = dict(re.findall(r"^\| (\d) \| ([^|]+) \|", GUIDE, re.MULTILINE))
    assert (
        "not met" in table[str(ContractError.exit_code)] and "bad input" in table[str(LstmoptError.exit_code)]
    )
