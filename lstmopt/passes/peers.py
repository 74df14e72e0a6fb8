"""Measures the original as users would deploy it today: what everything else competes with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lstmopt.errors import LstmoptError
from lstmopt.passes.candidates import assess, build_peers, fastest_f32, timed

if TYPE_CHECKING:
    from lstmopt.pipeline import State


@dataclass(frozen=True)
class Peers:
    """Speed and degradation of the original in every runtime x precision of the target.

    Args:
        rounds: blocks of each measurement.

    Raises:
        LstmoptError: fewer than 1.
    """

    rounds: int = 20
    name: ClassVar[str] = "peers"
    needs: ClassVar[tuple[str, ...]] = ("model", "target", "data")
    gives: ClassVar[tuple[str, ...]] = ("peers",)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise LstmoptError("Peers(rounds)", f"{self.rounds} is below 1", "give 1 or more")

    def run(self, state: State) -> State:
        """Returns the state with its peers."""
        built = build_peers(state.original, state.target, state.workdir)
        comparison = timed([built], state, self.rounds)
        peers = assess([built], comparison, state)
        fastest_f32(peers)  # before anything is trained
        return replace(state, peers=peers, notes=(*state.notes, *built.notes))
