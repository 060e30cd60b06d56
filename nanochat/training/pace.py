"""How far a stage has come: by its steps, or by the clock where that is ahead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Progress of a stage from where a process takes it up. Progress never jumps: what is left of it is spread over
    the time that is left, so that a restart, whatever it cost, leaves the learning rate continuous."""

    num_iterations: int
    """Optimizer steps after which the stage ends in any case."""
    begun: float = 0.0
    """Progress when it was taken up."""
    since_s: float = 0.0
    """When that was."""
    end_s: float | None = None
    """When its last step should be done; None: the steps alone decide."""

    def progress(self, step: int, now_s: float, step_s: float = 0.0) -> float:
        """The share of the stage done after `step` steps, in [0, 1]; 1 if there is no time for one more, of `step_s`
        seconds."""
        by_steps = step / self.num_iterations
        if self.end_s is None:
            return by_steps
        if now_s + step_s >= self.end_s:
            return 1.0
        by_clock = self.begun + (1 - self.begun) * (now_s - self.since_s) / (self.end_s - self.since_s)
        return min(max(by_steps, by_clock), 1.0)
