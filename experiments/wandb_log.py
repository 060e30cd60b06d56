"""A run told to Weights & Biases, by a process of its own: `--wandb online|offline`.

The process reads what training records, as anybody could. Training neither waits for it nor ends by it, and what it has
not sent when training is over it sends afterwards. A restart goes on with the same W&B run.
"""

import os
import secrets
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.config import STAGES, to_dict
from nanochat.errors import UserError
from nanochat.events import Event, Follower, Sampled, StageFinished, StepDone, TasksScored, Validated, read_events
from nanochat.files import write_json
from nanochat.inference.load import newest_checkpoint
from nanochat.run import Run, read_json

MODES = ("online", "offline", "off")
PROJECT = "nanochat"  # unless WANDB_PROJECT says otherwise
POLL_S = 1.0
WAIT_S = 30.0  # for it to be done, when training is


class WandbLog:
    """The process that tells of a run, seen from the one that trains it.

    Args:
        mode: online or offline.
        warn: told if it does not work.
    """

    def __init__(self, run: Run, mode: str, warn: Callable[[str], None]) -> None:
        self.warn, self._log = warn, run.directory / "wandb.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(run.directory), mode],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is not for it
            )
        self._warned = False

    def look(self) -> None:
        """Warn once where it has failed."""
        if self._process.poll() and not self._warned:
            self._warned = True
            reason = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            self.warn(f"W&B failed, which costs nothing but its record: {reason}")

    def close(self, within_s: float) -> None:
        """Training is over: let it tell the rest and the artifacts, and wait for that so long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(max(within_s, 0.0))
        except subprocess.TimeoutExpired:
            self.warn(f"W&B is still sending, process {self._process.pid}; how it went will be in {self._log}")
        self.look()


def check_wandb(mode: str) -> None:
    """Raises UserError where W&B could not know whose run it is."""
    if mode == "online":
        import wandb

        if not wandb.login(prompt=False, verify=False):
            raise UserError("--wandb online needs an account's key", "wandb login, or --wandb offline")


def main(directory: str, mode: str) -> None:
    """Tell of a run until nobody holds the other end of stdin: whoever started this has closed it, or died."""
    run = Run(Path(directory))
    ended = [Run(path.parent.parent) for path in sorted(run.directory.glob("search/trials/*/base/result.json"))]
    for trial in ended:
        if not _identity_path(trial).exists():
            told = _begin(trial, mode, group=run.name, job_type="trial")
            for stage in STAGES:
                for event in read_events(trial.directory, stage):
                    tell(told, event)
            told.finish()
    told = _begin(run, mode, group=run.name if ended else None, job_type="train")
    follower, identity = Follower(run.directory, STAGES), read_json(_identity_path(run))
    follower.paths.update({run.directory / path: offset for path, offset in identity.get("told", {}).items()})
    watched = True
    while watched:
        watched = not select.select([sys.stdin], [], [], POLL_S)[0]
        for event in follower.poll():
            tell(told, event)
        offsets = {str(path.relative_to(run.directory)): offset for path, offset in follower.paths.items()}
        write_json(_identity_path(run), {**identity, "told": offsets})
    status = run.status()
    done = status is not None and status.state == "done"
    if done:
        _add_artifacts(run, told)
    told.finish(exit_code=0 if done else 1)


def _begin(run: Run, mode: str, group: str | None, job_type: str) -> Any:
    import wandb

    if not _identity_path(run).exists():
        write_json(_identity_path(run), {"id": secrets.token_hex(8)})
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        name=run.name,
        id=read_json(_identity_path(run))["id"],
        resume="allow",
        group=group,
        job_type=job_type,
        mode=mode,  # type: ignore[arg-type]
        dir=run.directory,
        config={"config": to_dict(run.config()), "hardware": run.record()["hardware"]},
    )


def tell(told: Any, event: Event) -> None:
    """One event, as metrics of its stage over the stage's own steps: W&B's count must rise, and a rollback goes back.

    Args:
        told: a W&B run.
    """
    stage, values = event.stage, {}
    match event:
        case StepDone():
            names = ("loss", "grad_norm", "lr_factor", "seconds", "tokens_per_second", "progress")
            values = {name: getattr(event, name) for name in names}
        case Validated():
            values = {"val_bpb": event.val_bpb}
        case TasksScored():
            values = {f"accuracy/{skill}": score["accuracy"] for skill, score in event.scores.items()}
        case Sampled():
            told.summary[f"{stage}/sample/{event.prompt}"] = event.text
        case StageFinished():
            figures = {name: value for name, value in event.result.items() if isinstance(value, int | float)}
            told.summary.update({f"{stage}/result/{name}": value for name, value in figures.items()})
    if values:
        told.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        told.log({f"{stage}/step": event.step, **{f"{stage}/{name}": value for name, value in values.items()}})


def _add_artifacts(run: Run, told: Any) -> None:
    """The report, and the model with its tokenizer."""
    import wandb

    report = wandb.Artifact(f"{run.name}-report", type="report")
    for path in run.directory.glob("report.*"):
        report.add_file(str(path))
    told.log_artifact(report)
    model = wandb.Artifact(f"{run.name}-model", type="model")
    location = str(newest_checkpoint(run.directory, warn=print).location)
    if "://" in location:
        model.add_reference(location, checksum=False)
    else:
        model.add_dir(location, policy="immutable")  # which is not copied
    model.add_dir(str(run.tokenizer_directory), name="tokenizer")
    told.log_artifact(model)


def _identity_path(run: Run) -> Path:
    """What W&B knows the run by, and how much of its record it was told."""
    return run.directory / "wandb.json"


if __name__ == "__main__":
    main(*sys.argv[1:])
