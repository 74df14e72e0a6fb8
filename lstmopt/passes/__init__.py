"""The stages of the pipeline, one file each."""

from lstmopt.passes.back_off import BackOff
from lstmopt.passes.export import Export
from lstmopt.passes.grow_prune import GrowPrune
from lstmopt.passes.peers import Peers
from lstmopt.passes.probe import Probe
from lstmopt.passes.resize import Resize
from lstmopt.passes.simplify import Simplify
from lstmopt.passes.trained import Trained
from lstmopt.passes.verify import Verify

__all__ = ["BackOff", "Export", "GrowPrune", "Peers", "Probe", "Resize", "Simplify", "Trained", "Verify"]
