"""What a stage is, the state that stages hand on, the chain that runs them, and the usual chain."""

from lstmopt.pipeline.chain import GIVEN, Pipeline
from lstmopt.pipeline.dry_run import Plan, plan
from lstmopt.pipeline.standard import optimize, standard_stages
from lstmopt.pipeline.state import Budget, Stage, State

__all__ = ["GIVEN", "Budget", "Pipeline", "Plan", "Stage", "State", "optimize", "plan", "standard_stages"]
