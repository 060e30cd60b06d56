"""What is shown of trials, from what they write."""

import io
from pathlib import Path

from rich.console import Console

from experiments.trial_table import TrialTable
from nanochat.events import JsonlSink, StepDone, Validated
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.run import Run, Status, create

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})


def trial(search: Run, name: str, batch: int) -> Run:
    config = resolve(Request(stages=("base",), depth=2, total_batch_size=batch), CPU, compiler=None).config
    run = create(search.directory / "search" / "trials" / name, config, {})
    run.write_status(Status("running"))
    return run


def advance(run: Run, steps: int, progress: float, val_bpb: float) -> None:
    sink = JsonlSink(run.directory)
    sink(StepDone("base", steps, 3.0, 1.0, 1.0, 0.1, 1e4, progress=progress))
    sink(Validated("base", steps, val_bpb, 0.1))


def shown(table: TrialTable, output: io.StringIO, seconds: float) -> str:
    table.looked -= seconds  # as if so much time had passed
    table.said -= seconds
    before = len(output.getvalue())
    table.look()
    return output.getvalue()[before:]


def test_piped_each_trial_is_a_line_and_silence_is_short(tmp_path: Path):
    search, output = Run(tmp_path), io.StringIO()
    with TrialTable(Console(file=output, width=120), search, lambda: 60.0) as table:
        first = trial(search, "a", 512)
        assert "trial 1: starting" in shown(table, output, 11)
        advance(first, 100, 0.5, 1.25)
        assert "trial 1: 50%" in shown(table, output, 11)
        assert shown(table, output, 1) == ""
        first.write_status(Status("done"))
        assert "trial 1: depth 2, batch 512, lr_multiplier 8: val_bpb 1.2500 on 51,200" in shown(table, output, 1)
        table.tell("a", "", "0.9 ± 0.1")
        second = trial(search, "b", 1024)
        assert "predicted at val_bpb 0.9 ± 0.1" in shown(table, output, 1)
        advance(second, 10, 0.1, 2.0)
        second.write_status(Status("failed", reason="out_of_memory"))
        assert "trial 2: depth 2, batch 1,024, lr_multiplier 8: val_bpb out_of_memory, 2." in shown(table, output, 1)
        trial(search, "c", 2048)
        table.tell("c", "the worker died", "0.9 ± 0.1")
        table.tell("d", "run.json is [damaged]", "0.9 ± 0.1")
        said = shown(table, output, 1)
        assert "trial c: the worker died" in said
        assert "trial d: run.json is [damaged]" in said
        assert shown(table, output, 11) == ""  # nothing runs any more


def test_on_a_terminal_it_is_a_table(tmp_path: Path):
    search, output = Run(tmp_path), io.StringIO()
    with TrialTable(Console(file=output, width=120, force_terminal=True), search, lambda: 60.0) as table:
        advance(trial(search, "a", 512), 100, 0.5, 1.25)
        table.tell("a", "", "0.9 ± 0.1")
    text = output.getvalue()
    for part in ("1 min 00 s left", "final then predicted", "51,200", "1.2500", "0.9 ± 0.1"):
        assert part in text
