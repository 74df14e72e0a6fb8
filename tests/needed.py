"""What some tests need and not every machine has."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skips the test; fails it in CI, where a skip would hide that nothing was checked.

    Args:
        what: what is not there, and how to get it.
    """
    if os.environ.get("CI"):
        pytest.fail(f"CI has to have it: {what}")
    pytest.skip(what)
