"""Schedules: pure functions of progress in [0, 1], so that steps, tokens and seconds can all drive them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A trapezoid: linear warm-up, constant, linear warm-down to a final fraction (Hägele et al. 2024,
    arXiv:2405.18392; the shape nanochat uses)."""

    warmup: float = 0.0
    """Share of the stage over which the learning rate rises from nearly nothing."""
    warmdown: float = 0.5
    """Share of the stage, at its end, over which it falls."""
    final: float = 0.05
    """Where it ends, as a fraction of its peak."""

    def problems(self) -> list[str]:
        found = [f"{name} must lie in [0, 1], not {value}"
                 for name, value in (("warmup", self.warmup), ("warmdown", self.warmdown), ("final", self.final))
                 if not 0 <= value <= 1]
        if self.warmup + self.warmdown > 1:
            found.append(f"warmup {self.warmup} and warmdown {self.warmdown} overlap")
        return found

    def learning_rate(self, progress: float) -> float:
        """Factor on every learning rate at `progress`, the share of the stage done before the step."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)  # the very first step moves too
        if progress > 1 - self.warmdown:
            left = (1 - progress) / self.warmdown
            return left + (1 - left) * self.final
        return 1.0


def weight_decay(progress: float) -> float:
    """Factor on the weight decay at `progress`: it falls to nothing over the stage (nanochat, 2026)."""
    return 1 - progress


def muon_momentum(step: int) -> float:
    """Muon's momentum warms up over the first 300 steps, while gradients still turn quickly (modded-nanogpt)."""
    return 0.85 + 0.10 * min(step / 300, 1.0)
