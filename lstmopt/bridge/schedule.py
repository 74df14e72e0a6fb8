"""How density, learning rate and regrowth go over a training; all are functions of its progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The course of a grow-and-prune training.

    Attributes:
        start_density: density at the first step.
        density: density from the end of the ramp on.
        ramp: share of the training in which the density falls.
        hold: share of the training in which the learning rate stays.
        final_rate: what is left of the learning rate at the end, as a share.
        regrow: share of the kept weights that is exchanged at the first renewal of the masks.
        rounded: share of the training, its last, that is done on rounded weights.
    """

    start_density: float = 0.5
    density: float = 0.1
    ramp: float = 0.5
    hold: float = 0.4
    final_rate: float = 0.02
    regrow: float = 0.0
    rounded: float = 0.0

    def density_at(self, progress: float) -> float:
        """Returns the density: a cubic fall (Zhu and Gupta, arXiv 1710.01878, section 3), then the target."""
        left = max(0.0, 1.0 - progress / self.ramp) if self.ramp > 0 else 0.0
        return self.density + (max(self.start_density, self.density) - self.density) * left**3

    def rate_at(self, progress: float) -> float:
        """Returns the factor on the learning rate: 1, then an exponential fall to `final_rate`."""
        if progress <= self.hold or self.hold >= 1:
            return 1.0
        fallen: float = self.final_rate ** ((progress - self.hold) / (1.0 - self.hold))
        return fallen

    def is_rounded_at(self, progress: float) -> bool:
        """Returns whether weights are rounded, where the training rounds any."""
        return progress >= 1.0 - self.rounded

    def regrow_at(self, progress: float) -> float:
        """Returns the share of kept weights to exchange; it falls to 0 at the end of the ramp."""
        return self.regrow * max(0.0, 1.0 - progress / self.ramp) if self.ramp > 0 else 0.0
