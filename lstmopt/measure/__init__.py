"""The one place that times anything."""

from lstmopt.measure.process import Candidate
from lstmopt.measure.statistics import Ratio, Timing
from lstmopt.measure.timing import Comparison, compare

__all__ = ["Candidate", "Comparison", "Ratio", "Timing", "compare"]
