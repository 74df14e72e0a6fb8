"""What all tests share."""

from __future__ import annotations

import os

# Several tests at once on two cores: threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
