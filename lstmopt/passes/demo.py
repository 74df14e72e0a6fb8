"""What `lstmopt demo` optimises: the reference model on the standard library's own source text."""

from __future__ import annotations

from typing import Any

from lstmopt.errors import LstmoptError
from lstmopt.passes.back_off import BackOff
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.reference.char_lm import UNPINNED, corpus, model_path

TRAINING_SECONDS = 330.0
MAX_DEGRADATION = 0.02
HELD_OUT = 65_536
"""Characters of the validation text that each candidate is tried on: the demo's ten minutes are for more."""


def demo_call() -> dict[str, Any]:
    """Returns the keywords of `lstmopt.optimize`.

    Raises:
        LstmoptError: this Python comes without its standard library's sources.
    """
    try:
        text = corpus()
    except FileNotFoundError as error:
        raise LstmoptError("lstmopt demo", str(error), "use a Python with its sources") from error
    return {
        "model": model_path(),
        "target": "local",
        "data": {"tokens": text.train},
        "val": {"tokens": text.valid[:HELD_OUT]},
        "test": {"tokens": text.test},
        "task": "lm",
        "max_degradation": MAX_DEGRADATION,
        "back_off": BackOff(
            scales=(0.98,),
            compression=4.1,
            relaxed=(1.0,),
            tune=0.0,
            train=GrowPrune(learning_rate=4e-3, dropout=0.0, start_density=0.8, regrow=0.0),
        ),
        "notes": () if text.pinned else (UNPINNED,),
        "seconds": TRAINING_SECONDS,
    }
