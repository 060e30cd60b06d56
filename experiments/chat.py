"""Talk to a run: in the terminal, python experiments/chat.py RUN [--prompt "..."], or in the browser, with --serve."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import torch

from experiments.cli import run
from nanochat.errors import UserError
from nanochat.inference.engine import Engine
from nanochat.inference.load import STAGES, load_model, newest_checkpoint
from nanochat.inference.reply import ReplyReader, least_room
from nanochat.interchange.bring_in import find_model
from nanochat.model import Transformer
from nanochat.tokenizer import Tokenizer, render_prompt

HELP = """\
/clear  forget the conversation      /quit  leave (or Ctrl-D)
/help   show this                    Ctrl-C  stop an answer"""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.serve:
        return serve_models(options)
    run_dir = find_model(options.run, options.runs_dir, partial(print, file=sys.stderr))
    warn = partial(print, "warning:", file=sys.stderr)
    checkpoint = newest_checkpoint(run_dir, options.stage, warn=warn)
    stage = checkpoint.state["stage"]
    device, dtype, reason = choose_device()
    model, tokenizer = load_model(checkpoint, run_dir / "tokenizer", device, dtype)
    sampling = {"temperature": options.temperature, "top_k": options.top_k, "seed": options.seed}
    session = (Completion if stage == "base" else Chat)(model, tokenizer, options.max_tokens, sampling)
    if options.prompt is not None:
        answer(session, options.prompt, sys.stdout)
        return 0
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"{run_dir.name}, {stage} stage, step {checkpoint.step:,} on {device} ({reason})\n{HELP}")
    return talk(session, sys.stdin, sys.stdout)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="chat.py",
        description="Talk to a trained run. A base model, which knows no "
        "conversations yet, continues your text instead.",
    )
    parser.add_argument(
        "run",
        nargs="?",
        default="",
        help="a run's name or directory, a checkpoint of public nanochat, or hf:owner/name; with --serve by default "
        "the newest finished run",
    )
    parser.add_argument("--stage", choices=STAGES, help="default: the last stage that has a checkpoint")
    parser.add_argument("--prompt", help="ask this one thing, print the answer and leave")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest word, 1 samples as trained (default: 0)"
    )
    parser.add_argument("--top-k", type=int, help="sample among this many likeliest tokens only (default: all)")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer, in tokens (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    parser.add_argument("--serve", action="store_true", help="a page to chat on, and an API as OpenAI's, for all runs")
    parser.add_argument("--host", default="127.0.0.1", help="of --serve; others than this machine's own need --api-key")
    parser.add_argument("--port", type=int, default=8000, help="of --serve (default: 8000; 0: any that is free)")
    parser.add_argument("--api-key", default=os.environ.get("NANOCHAT_API_KEY", ""),
                        help="that clients of --serve must bring (default: $NANOCHAT_API_KEY)")  # fmt: skip
    options = parser.parse_args(argv)
    problems = [
        problem
        for problem, found in (
            ("--temperature must be 0 or more", not options.temperature >= 0),
            ("--top-k must be at least 1", options.top_k is not None and options.top_k < 1),
            ("--max-tokens must be at least 1", options.max_tokens < 1),
            ("--port must be 0 to 65535", not 0 <= options.port <= 65_535),
            ("name a run, or add --serve", not options.run and not options.serve),
        )
        if found
    ]
    if problems:
        raise UserError("; ".join(problems))
    return options


def serve_models(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UserError("--serve needs FastAPI and uvicorn", 'pip install -e ".[serve]"')
    from experiments.models import Models
    from experiments.serve import is_loopback, serve

    if not options.api_key and not is_loopback(options.host):
        raise UserError(
            f"at --host {options.host} everybody who reaches this machine could ask",
            "add --api-key, or leave --host out",
        )
    say = partial(print, file=sys.stderr)
    run_dir = (find_model(options.run, options.runs_dir, say) if options.run else _newest(options.runs_dir)).absolute()
    stage = newest_checkpoint(run_dir, options.stage, warn=partial(print, "warning:", file=sys.stderr)).state["stage"]
    device, dtype, _ = choose_device()
    models = Models(run_dir.parent, f"{run_dir.name}/{stage}", device, dtype)
    models.open("")
    serve(models, options.host, options.port, options.api_key, partial(print, flush=True))
    return 0


def _newest(runs_dir: Path) -> Path:
    """The run that finished last."""
    from experiments.runs import lines

    done = [line.name for line in lines(runs_dir) if line.state == "done"]
    if not done:
        raise UserError(f"no run in {runs_dir} has finished", "python experiments/run_stage.py --mode demo")
    return runs_dir / done[-1]


def choose_device() -> tuple[str, torch.dtype, str]:
    """Where and in what numbers to generate, and why."""
    if torch.cuda.is_available():
        return "cuda", torch.bfloat16, "a GPU, in the bf16 it was trained in"
    return "cpu", torch.float32, "fp32 answers faster than bf16, one token at a time"


class TooLong(UserError):
    """A single message that leaves no room for an answer."""


@dataclass
class Completion:
    """What a base model can do: continue a text. Every text stands alone."""

    model: Transformer
    tokenizer: Tokenizer
    max_tokens: int
    sampling: dict[str, Any]
    notice: str = ""
    """Something to tell the user once, after the answer."""

    def reply(self, text: str) -> Iterator[tuple[str, str]]:
        """The answer as (kind of part, text) pieces while it is being generated."""
        reader = ReplyReader(self.tokenizer)
        prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        self._check_fits(prompt)
        yield from self._stream(prompt, reader)

    def clear(self) -> None:
        """Forget everything said."""

    @property
    def context(self) -> int:
        return self.model.config.max_seq_len

    def _fits(self, prompt: list[int]) -> bool:
        """Whether it leaves room for an answer."""
        return len(prompt) + least_room(self.context, self.max_tokens) <= self.context

    def _check_fits(self, prompt: list[int]) -> None:
        if not self._fits(prompt):
            raise TooLong(
                f"this is {len(prompt)} tokens long, which leaves no room for an answer in the model's "
                f"context of {self.context}",
                "say it shorter, or lower --max-tokens",
            )

    def _stream(self, prompt: list[int], reader: ReplyReader) -> Iterator[tuple[str, str]]:
        engine = Engine(self.model, self.tokenizer)
        for (token,) in engine.generate([prompt], max_new_tokens=self.max_tokens, **self.sampling):
            yield from reader.feed(token.id)
        yield from reader.finish()


@dataclass
class Chat(Completion):
    """A conversation: what was said before is part of the prompt, as far back as the context reaches."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    forgot: bool = False

    def reply(self, text: str) -> Iterator[tuple[str, str]]:
        question = {"role": "user", "content": text}
        self._check_fits(render_prompt(self.tokenizer, [question]))
        while not self._fits(prompt := render_prompt(self.tokenizer, [*self.messages, question])):
            del self.messages[:2]
            if not self.forgot:
                self.forgot = True
                self.notice = f"(the context of {self.context} tokens is full: the oldest turns are forgotten)"
        reader = ReplyReader(self.tokenizer)
        self.messages += [question, {"role": "assistant", "content": reader.parts}]  # grows; stays if interrupted
        yield from self._stream(prompt, reader)

    def clear(self) -> None:
        self.messages, self.forgot, self.notice = [], False, ""


def talk(session: Completion, source: TextIO, out: TextIO) -> int:
    """Question and answer until the end of the input or /quit."""
    terminal = source.isatty() and out.isatty()
    while True:
        try:
            line = read_line(source, terminal)
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=out)
            continue
        if line is None or line == "/quit":
            return 0
        if line == "/help":
            print(HELP, file=out)
        elif line == "/clear":
            session.clear()
        elif line.startswith("/") and " " not in line:
            print(f"there is no command {line}\n{HELP}", file=sys.stderr)
        elif line:
            converse(session, line, out, terminal)


def read_line(source: TextIO, terminal: bool) -> str | None:
    """A line without the spaces around it, or None at the end."""
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  line editing for input()
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
    line = source.readline()
    return line.strip() if line else None


def converse(session: Completion, line: str, out: TextIO, terminal: bool) -> None:
    """One turn of an interactive conversation, which an interrupt or a message too long does not end."""
    try:
        answer(session, line, out)
    except KeyboardInterrupt:
        print(PLAIN if out.isatty() else "", file=out)
        if not terminal:
            raise
    except TooLong as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)


def answer(session: Completion, text: str, out: TextIO) -> None:
    """Stream the answer. A terminal also sees calculator calls, dimmed, like [37+58 = 95]."""
    shown = "text"
    for kind, piece in session.reply(text):
        if kind != shown and out.isatty():
            out.write({"python": f"{DIM}[", "python_output": " = ", "text": f"]{PLAIN}"}[kind])
        shown = kind
        if kind == "text" or out.isatty():
            out.write(piece)
            out.flush()
    out.write(f"]{PLAIN}\n" if shown != "text" and out.isatty() else "\n")
    out.flush()
    if session.notice:
        print(session.notice, file=sys.stderr)
        session.notice = ""


if __name__ == "__main__":
    sys.exit(run(main))
