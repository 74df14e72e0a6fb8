"""Files that were damaged byte by byte: each is read, or refused in one clear line; no crash, no hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lstmopt.reference.char_lm import model_path
from tests.real_models import ddddocr, nsnet2, silero_vad

SECONDS, GIGABYTES = 60, 4

READER = """
import json, random, resource, sys, time
from pathlib import Path
from lstmopt.errors import LstmoptError
from lstmopt.rnn.files import load_model
from lstmopt.rnn.inspection import inspect_model

source, place, first, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
whole = source.read_bytes()
for seed in range(first, last):
    rng, content = random.Random(seed), bytearray(whole)
    kind = seed % 5
    at = rng.randrange(len(content))
    if kind == 0:  # single bytes, in the graph's own part too, which lies at either end
        places = [rng.randrange(len(content)) for _ in range(20)]
        for each in (*places, rng.randrange(2000), -rng.randrange(1, 2000)):
            content[each] = rng.randrange(256)
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        del content[at : at + rng.randrange(1, 5000)]
    elif kind == 3:
        content[at : at + 64] = rng.randbytes(64)
    else:  # the ends hold names, shapes and attributes
        span = rng.randrange(max(1, len(content) - 4000), len(content))
        content[span : span + 8] = rng.randbytes(8)
    place.write_bytes(content)
    began, said = time.monotonic(), "read"
    try:
        inspect_model(load_model(place), str(place))
    except LstmoptError as error:
        said = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([seed, said, time.monotonic() - began, peak]), flush=True)
"""


def read_all(source: Path, place: Path, first: int, last: int) -> list[str]:
    """Reads damaged copies in a process of their own; returns what was said of each."""
    command = [sys.executable, "-c", READER, str(source), str(place), str(first), str(last)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS * (last - first)
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == list(range(first, last)), result.stderr[-2000:]
    assert result.returncode == 0, result.stderr[-2000:]
    for _, said, seconds, peak in lines:
        assert "\n" not in said and "Traceback" not in said
        assert seconds < SECONDS and peak < GIGABYTES
    return [line[1] for line in lines]


def test_damaged_copies_of_the_reference_model(tmp_path: Path) -> None:
    said = read_all(model_path(), tmp_path / "damaged.onnx", 0, 20)
    assert len(set(said)) > 2 and any(line != "read" for line in said)


@pytest.mark.deep
def test_damaged_copies_of_models_that_others_trained(tmp_path: Path) -> None:
    files = (silero_vad(), silero_vad("silero_vad_op18_ifless.onnx"), nsnet2(), ddddocr(), model_path())
    count = 0
    for number, source in enumerate(files):
        last = 15 if source == ddddocr() else 50
        count += len(read_all(source, tmp_path / "damaged.onnx", 100 * number, 100 * number + last))
    assert count >= 200
