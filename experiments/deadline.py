"""Keeping a run within its cap, whatever its workers do."""

from dataclasses import asdict

from nanochat.clock import RunClock
from nanochat.config import RunConfig
from nanochat.errors import UserError
from nanochat.events import JsonlSink, Note, StageFinished
from nanochat.files import write_json
from nanochat.run import Run
from nanochat.training.checkpoint import CheckpointStore
from nanochat.training.result import StageResult

ASK_S = 8.0  # before the end workers that still train are asked to save and stop
LEAVE_S = 6.0  # before the end those that did not are left behind: Ray takes up to four seconds to end, the report one
BEAT_S = 1.0


class TimeIsUp(Exception):
    """The cap is nearly reached and the workers have not ended."""


class Watch:
    """Looks at the run's clock, again and again, from the process that started the workers."""

    def __init__(self, run: Run, cap_s: float | None, clock: RunClock) -> None:
        self.run, self.cap_s, self.clock, self.asked = run, cap_s, clock, False

    def look(self) -> None:
        """Note that time has passed, ask the workers to stop, or raise TimeIsUp."""
        now = self.clock()
        if now - (self.clock.beat - self.clock.started + self.clock.spent_s) >= BEAT_S:
            self.clock = self.clock.beating(self.run.clock_path)
        if self.cap_s is None:
            return
        if now >= self.cap_s - LEAVE_S:
            raise TimeIsUp
        if now >= self.cap_s - ASK_S and not self.asked:
            self.asked = True
            self.run.request_stop()


def settle(run: Run, config: RunConfig) -> None:
    """Give every stage that was begun and not ended the result that its newest checkpoint has: for a run whose time
    is up.

    Raises:
        UserError: no stage has a checkpoint.
    """
    emit = JsonlSink(run.directory)
    for stage in config.trained_stages:
        if run.result_path(stage).exists():
            continue
        store = CheckpointStore(run.checkpoints(stage))
        found = store.newest(lambda text, stage=stage: emit(Note(stage, text, warning=True)))
        if found is None:
            emit(Note(stage, "the time was up before anything of it was saved", warning=True))
            continue
        result = StageResult(**found.state["result"])
        text = f"the time was up: the model is that of step {found.step:,}, val_bpb as last measured"
        emit(Note(stage, text, warning=True))
        write_json(run.result_path(stage), asdict(result))
        emit(StageFinished(stage, found.step, asdict(result)))
    if config.trained_stages and not set(config.trained_stages) & run.results().keys():
        raise UserError(
            "the time was up before anything could be saved", "give more --hours, or a smaller --depth"
        )
