"""Conversations for tests: the public datasets in small, by way of a hub or without, and the user's own."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import chats, mixture_rows
from nanochat.data.mixtures import DATASETS, MIXTURES, Part
from tests.conftest import REAL_DATA
from tests.hub import Hub

GSM8K = REAL_DATA / "chat/gsm8k_train_3000.jsonl"
DOLLY = REAL_DATA / "chat/dolly_hhrlhf_small.jsonl"
ARC = REAL_DATA / "core/arc_easy.jsonl"


def real(path: Path, most: int) -> list[dict[str, Any]]:
    if not path.exists():
        pytest.skip(f"no real samples at {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:most]]


def invented(name: str, count: int) -> list[dict[str, Any]]:
    """Rows in the format of the dataset's own."""
    made = {
        "smoltalk": lambda i: {"messages": [{"role": "user", "content": f"Say something of number {i}, please."},
                                            {"role": "assistant", "content": f"Number {i} has many friends. " * 3}]},
        "aux": lambda i: {"train": {"question": f"Which is {i}?", "choices": [str(i), "no", "none", "never"],
                                    "answer": 0, "subject": ""}},
        "mmlu": lambda i: {"question": f"Which is it, {i}?", "choices": ["no", str(i), "none", "never"], "answer": 1,
                           "subject": "numbers"},
        "gsm8k": lambda i: {"question": f"What is {i} and 1?",
                            "answer": f"It is {i}+1=<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"},
        "arc": lambda i: {"id": str(i), "question": f"What is {i}?", "answerKey": "2" if i % 2 else "B",
                          "choices": {"text": ["a tree", "a number", "a king"],
                                      "label": ["1", "2", "3"] if i % 2 else ["A", "B", "C"]}},
        "humaneval": lambda i: {"task_id": str(i), "prompt": f"def add(x):\n    # adds {i}\n", "entry_point": "add",
                                "canonical_solution": f"    return x + {i}\n",
                                "test": f"def check(f):\n    assert f(1) == {i + 1}\n"},
    }  # fmt: skip
    return [made[name](number) for number in range(count)]


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file)
    return file.getvalue()


def serve(hub: Hub) -> None:
    """Small datasets under the names and configurations of the real ones."""
    tables = {
        "smoltalk": {("default", "train"): invented("smoltalk", 300)},
        "mmlu": {("auxiliary_train", "train"): invented("aux", 60), ("all", "test"): invented("mmlu", 40)},
        "gsm8k": {("main", "train"): invented("gsm8k", 50), ("main", "test"): invented("gsm8k", 20)},
        "arc": {(config, split): invented("arc", 30) for config in ("ARC-Easy", "ARC-Challenge")
                for split in ("train", "test")},
        "humaneval": {("openai_humaneval", "test"): invented("humaneval", 4)},
    }  # fmt: skip
    for name, splits in tables.items():
        files = {f"{config}/{split}-00000-of-00001.parquet": parquet(rows) for (config, split), rows in splits.items()}
        configs = {config: [split for other, split in splits if other == config] for config, _ in splits}
        card = ["---", "configs:"]
        for config, names in configs.items():
            card += [f"- config_name: {config}", "  data_files:"]
            card += [line for split in names for line in (f"  - split: {split}", f"    path: {config}/{split}-*")]
        files["README.md"] = "\n".join([*card, "---", ""]).encode()
        hub.add(DATASETS[name].repo, files)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same datasets without any hub, and mixtures of a few hundred made by code."""
    import datasets

    known = {(DATASETS["smoltalk"].repo, None, "train"): invented("smoltalk", 300),
             (DATASETS["mmlu"].repo, "auxiliary_train", "train"): invented("aux", 60),
             (DATASETS["mmlu"].repo, "all", "test"): invented("mmlu", 40),
             (DATASETS["humaneval"].repo, "openai_humaneval", "test"): invented("humaneval", 4)}  # fmt: skip
    for split in ("train", "test"):
        known[DATASETS["gsm8k"].repo, "main", split] = invented("gsm8k", 50)
        for config in ("ARC-Easy", "ARC-Challenge"):
            known[DATASETS["arc"].repo, config, split] = invented("arc", 30)
    monkeypatch.setattr(mixture_rows, "_load", lambda *name: datasets.Dataset.from_list(known[name]))
    small = {
        stage: tuple(Part(**{**vars(part), "rows": part.rows and min(part.rows, 40)}) for part in parts)
        for stage, parts in MIXTURES.items()
    }
    monkeypatch.setattr(chats, "MIXTURES", small)


def own(path: Path, count: int, ending: str = "") -> Path:
    records = real(DOLLY, count)
    pairs = [(("user", record["prompt"]), ("assistant", record["response"] + ending)) for record in records]
    lines = [{"messages": [{"role": role, "content": content} for role, content in pair]} for pair in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
