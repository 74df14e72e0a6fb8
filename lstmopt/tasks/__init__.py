"""What "as accurate" means for a model: one file a kind of task."""

from lstmopt.tasks.base import Batch, Degradation, Evaluation, Runner, Task, degradation
from lstmopt.tasks.data import Dataset, Splits
from lstmopt.tasks.prepare import TASKS, Prepared, prepare

__all__ = [
    "TASKS",
    "Batch",
    "Dataset",
    "Degradation",
    "Evaluation",
    "Prepared",
    "Runner",
    "Splits",
    "Task",
    "degradation",
    "prepare",
]
