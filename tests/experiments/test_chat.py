import dataclasses
import io
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from experiments import chat
from experiments.cli import run
from nanochat.errors import UserError
from nanochat.inference.engine import Engine
from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import CheckpointStore

ANSWER = ["<|assistant_start|>", *b"Nam", "<|python_start|>", *b"1+2", "<|python_end|>"]
AFTER_CALL = ["<|output_end|>", *" =é!".encode(), "<|assistant_end|>"]  # é is two tokens
COMPLETION = [*b"Abc", "<|bos|>"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A run whose model writes ANSWER to any message, and COMPLETION after an A: each token has one successor."""
    runs = tmp_path_factory.mktemp("runs")
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
    tokenizer.save(runs / "parrot" / "tokenizer")
    config = ModelConfig(
        depth=1,
        width=288,
        head_dim=32,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=100,
        value_embeddings=False,
        residual_scalars=False,
        input_scalars=False,
    )
    model = Transformer(config)
    with torch.no_grad():
        model.embedding.copy_(torch.eye(*model.embedding.shape))
        model.head.zero_()
        for script in (ANSWER, AFTER_CALL, COMPLETION):
            ids = [tokenizer.special(item) if isinstance(item, str) else item for item in script]
            for token, successor in pairwise(ids):
                model.head[successor, token] = 1.0
    for stage in ("base", "sft"):
        state = {"stage": stage, "model": dataclasses.asdict(config), "tokenizer": tokenizer.fingerprint}
        CheckpointStore(runs / "parrot" / stage / "checkpoints").save(5, {"model": model.state_dict()}, state)
    return runs


@pytest.fixture
def prompts(runs_dir, monkeypatch):
    """What the model is given, as text."""
    seen, generate = [], Engine.generate

    def watched(self, prompts, **options):
        seen.extend(self.tokenizer.decode(prompt) for prompt in prompts)
        return generate(self, prompts, **options)

    monkeypatch.setattr(Engine, "generate", watched)
    return seen


def session(runs_dir, *flags: str):
    """What main() makes of the flags, without talking."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "talk", lambda session, source, out: found.append(session) or 0)
        assert chat.main(["parrot", "--runs-dir", str(runs_dir), *flags]) == 0
    return found[0]


def test_one_shot_prints_the_answer_and_nothing_else(runs_dir, capsys, prompts):
    assert chat.main(["parrot", "--prompt", "Who?", "--runs-dir", str(runs_dir)]) == 0
    assert capsys.readouterr() == ("Nam =é!\n", "")
    assert prompts == ["<|bos|><|user_start|>Who?<|user_end|><|assistant_start|>"]
    assert chat.main([str(runs_dir / "parrot"), "--stage", "base", "--prompt", "xA"]) == 0
    assert capsys.readouterr() == ("bc\n", "")
    assert prompts[1:] == ["<|bos|>xA"]
    assert chat.main(["parrot", "--prompt", "?", "--max-tokens", "2", "--runs-dir", str(runs_dir)]) == 0
    assert capsys.readouterr().out == "Na\n"


def test_the_script_as_a_user_runs_it(runs_dir):
    script = Path(chat.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "parrot", "--runs-dir", str(runs_dir)],
        capture_output=True,
        text=True,
        input="Who?\nAnd?\n",
        cwd=script.parents[1],
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nam =é!\nNam =é!\n", "")


def test_a_terminal_sees_calls_dimmed_and_characters_whole(runs_dir):
    out, written = Terminal(), []
    out.write = lambda text: written.append(text) or 0
    chat.answer(session(runs_dir), "Who?", out)
    assert "".join(written) == "Nam\x1b[2m[1+2 = 3]\x1b[0m =é!\n"
    assert "é" in written  # in one piece
    written.clear()
    chat.answer(session(runs_dir, "--max-tokens", "6"), "Who?", out)
    assert "".join(written) == "Nam\x1b[2m[1+]\x1b[0m\n"


def test_history_clear_and_commands(runs_dir, prompts, capsys):
    out = io.StringIO()
    assert chat.talk(session(runs_dir), io.StringIO("/help\n\none\ntwo\n/clear\nthree\n/nope\n/quit\nfour\n"), out) == 0
    call = "<|python_start|>1+2<|python_end|><|output_start|>3<|output_end|>"
    first = "<|bos|><|user_start|>one<|user_end|><|assistant_start|>"
    assert prompts == [
        first,
        f"{first}Nam{call} =é!<|assistant_end|><|user_start|>two<|user_end|><|assistant_start|>",
        first.replace("one", "three"),
    ]
    assert out.getvalue() == chat.HELP + "\n" + "Nam =é!\n" * 3
    assert "no command /nope" in capsys.readouterr().err


def test_the_oldest_turns_are_forgotten_once_the_context_is_full(runs_dir, prompts, capsys):
    talk = session(runs_dir, "--max-tokens", "20")
    assert chat.talk(talk, io.StringIO("".join(f"question {i}\n" for i in range(6))), io.StringIO()) == 0
    said = [prompt.count("question") for prompt in prompts]
    assert said == [1, 2, 3, 3, 3, 3]
    assert "question 4" in prompts[-1]
    assert "question 5" in prompts[-1]
    assert capsys.readouterr().err.count("oldest turns are forgotten") == 1


def test_a_message_too_long_costs_nothing(runs_dir, prompts, capsys):
    out = io.StringIO()
    assert chat.talk(session(runs_dir), io.StringIO("one\n" + "x" * 90 + "\ntwo\n"), out) == 0
    assert out.getvalue() == "Nam =é!\n" * 2
    assert "error: this is 94 tokens long" in capsys.readouterr().err
    assert prompts[-1].endswith("two<|user_end|><|assistant_start|>")
    assert "xxx" not in prompts[-1]
    assert "one" in prompts[-1]
    with pytest.raises(UserError, match="tokens long"):
        chat.main(["parrot", "--prompt", "x" * 90, "--runs-dir", str(runs_dir)])


def test_interrupts(runs_dir, prompts, monkeypatch):
    """Ctrl-C stops an answer, which stays as far as it got; at the prompt it changes nothing; Ctrl-D leaves."""
    lines = iter(["one", KeyboardInterrupt(), "two", EOFError()])

    def typed(prompt):
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    class Impatient(Terminal):
        def write(self, text):
            written = super().write(text)
            if self.getvalue() == "Nam":
                raise KeyboardInterrupt
            return written

    monkeypatch.setattr("builtins.input", typed)
    out = Impatient()
    assert chat.talk(session(runs_dir), Terminal(), out) == 0
    assert "(Ctrl-D leaves)" in out.getvalue()
    assert out.getvalue().endswith(" =é!\n")
    assert "one<|user_end|><|assistant_start|>Nam<|assistant_end|><|user_start|>two" in prompts[-1]


def test_sampling_flags_reach_the_engine(runs_dir, monkeypatch):
    given = {}
    monkeypatch.setattr(Engine, "generate", lambda self, prompts, **options: given.update(options) or iter(()))
    flags = ["--temperature", "0.7", "--top-k", "5", "--seed", "3", "--max-tokens", "9"]
    assert chat.main(["parrot", "--prompt", "?", "--runs-dir", str(runs_dir), *flags]) == 0
    assert given == {"temperature": 0.7, "top_k": 5, "seed": 3, "max_new_tokens": 9}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["nobody"], "error: there is no run 'nobody'"),
        (["parrot", "--stage", "mid"], "no whole checkpoint of stage mid"),
        (
            ["parrot", "--top-k", "0", "--max-tokens", "0"],
            "--top-k must be at least 1; --max-tokens must be at least 1",
        ),
        (["parrot", "--temperature", "nan"], "--temperature must be 0 or more"),
    ],
)
def test_mistakes_are_told_in_two_lines(runs_dir, capsys, flags, said):
    assert run(chat.main, [*flags, "--prompt", "?", "--runs-dir", str(runs_dir)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


def test_a_damaged_checkpoint_is_named_and_passed_over(runs_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(runs_dir / "parrot"), str(copy)], check=True)
    (copy / "sft/checkpoints/step_000005/model.safetensors").write_bytes(b"")
    assert chat.main([str(copy), "--prompt", "xA"]) == 0
    out, err = capsys.readouterr()
    assert out == "bc\n"
    assert err.startswith("warning: checkpoint")


def test_exit_codes(capsys):
    def fail(error):
        def main(argv):
            raise error

        return main

    assert run(lambda argv: 0, []) == 0
    assert run(fail(UserError("no data", "look elsewhere")), []) == 2
    assert capsys.readouterr().err == "error: no data\nhint: look elsewhere\n"
    assert run(fail(UserError("no data")), []) == 2
    assert capsys.readouterr().err == "error: no data\n"
    assert run(fail(KeyboardInterrupt()), []) == 130
    with pytest.raises(ZeroDivisionError):
        run(fail(ZeroDivisionError()), [])
