"""The CORE suite of DCLM (Li et al. 2024, arXiv:2406.11794, appendix G): 22 tasks for base models, in their own format.

Which tasks, how many examples go before each, and what stands before an answer is that of the suite's core.yaml
(mosaicml/llm-foundry); what blind picking gets is of its eval_meta_data.csv.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import UserError

ORDER_SEED = 1337  # as public nanochat's base_eval.py has them, so that figures can be compared
SHOTS_SEED = 1234
KINDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}


@dataclass(frozen=True)
class CoreTask:
    """One task of the suite."""

    label: str
    file: str
    """Its name below `eval_data` of the bundle."""
    kind: str
    """`multiple_choice` (which continuation of a query), `schema` (after which context does it continue so) or
    `language_modeling` (is this how it goes on)."""
    shots: int
    """Answered examples that stand before each question."""
    chance: float = 0.0
    """Accuracy of one who picks blindly."""
    delimiter: str = " "
    """Between question and answer."""


@dataclass(frozen=True)
class Example:
    """One question: contexts and the continuation of each, one of which is right."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0

    @property
    def answer(self) -> tuple[str, str]:
        """The right context and continuation."""
        return self.contexts[self.gold], self.continuations[self.gold]


def _choice(label: str, folder: str, shots: int, chance: float, delimiter: str = " ", file: str = "") -> CoreTask:
    return CoreTask(label, f"{folder}/{file or label}.jsonl", "multiple_choice", shots, chance, delimiter)


def _continued(label: str, folder: str, shots: int, delimiter: str = " ", file: str = "") -> CoreTask:
    return CoreTask(label, f"{folder}/{file or label}.jsonl", "language_modeling", shots, 0.0, delimiter)


_ANSWER = "\nAnswer: "
_LANGUAGE, _WORLD, _COMMON = "language_understanding", "world_knowledge", "commonsense_reasoning"
_SYMBOLS, _READING = "symbolic_problem_solving", "reading_comprehension"
CORE_TASKS = (
    _choice("hellaswag_zeroshot", _LANGUAGE, 0, 0.25, file="hellaswag"),
    _continued("jeopardy", _WORLD, 10, _ANSWER, file="jeopardy_all"),
    _continued("bigbench_qa_wikidata", _WORLD, 10),
    _choice("arc_easy", _WORLD, 10, 0.25, _ANSWER),
    _choice("arc_challenge", _WORLD, 10, 0.25, _ANSWER),
    _choice("copa", _COMMON, 0, 0.5),
    _choice("commonsense_qa", _COMMON, 10, 0.2),
    _choice("piqa", _COMMON, 10, 0.5, _ANSWER),
    _choice("openbook_qa", _COMMON, 0, 0.25),
    _continued("lambada_openai", _LANGUAGE, 0),
    _choice("hellaswag", _LANGUAGE, 10, 0.25),
    CoreTask("winograd", f"{_LANGUAGE}/winograd_wsc.jsonl", "schema", 0, 0.5),
    CoreTask("winogrande", f"{_LANGUAGE}/winogrande.jsonl", "schema", 0, 0.5),
    _continued("bigbench_dyck_languages", _SYMBOLS, 10),
    _choice("agi_eval_lsat_ar", _SYMBOLS, 3, 0.2),
    _continued("bigbench_cs_algorithms", _SYMBOLS, 10),
    _continued("bigbench_operators", _SYMBOLS, 10),
    _continued("bigbench_repeat_copy_logic", _SYMBOLS, 10),
    _continued("squad", _READING, 10),
    _continued("coqa", _READING, 0),
    _choice("boolq", _READING, 10, 0.62, _ANSWER),
    _choice("bigbench_language_identification", _LANGUAGE, 10, 0.091),
)


def find_core_tasks(folder: Path) -> dict[CoreTask, Path]:
    """The tasks of the suite whose files are in a folder: the public bundle's, or any with `<task>.jsonl` in it.

    A number behind the name, as in lambada_openai_2000.jsonl, is passed over: a part of the task.

    Raises:
        UserError: there is none.
    """
    files = {re.sub(r"_\d+$", "", path.stem): path for path in sorted(folder.rglob("*.jsonl"))}
    found = {task: files[stem] for task in CORE_TASKS if (stem := Path(task.file).stem) in files}
    if not found:
        raise UserError(f"{folder} holds no task of CORE", "it should hold files such as arc_easy.jsonl")
    return found


def read_core_task(task: CoreTask, path: Path) -> list[Example]:
    """The examples of a task, in an order that is always the same and has no order: the first few are a fair sample.

    Raises:
        UserError: the file cannot be read or a line is no example; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", "get the file again") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(_example(task, json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                message = f"{path}, line {number} is no example of {task.label}: {error}"
                raise UserError(message, "get the file again") from error
    if len(examples) <= task.shots:
        message = f"{path} holds {len(examples)} examples, and {task.shots} others stand before each"
        raise UserError(message, "get the file again")
    random.Random(ORDER_SEED).shuffle(examples)
    return examples


def _example(task: CoreTask, record: dict[str, Any]) -> Example:
    for name, kind in KINDS[task.kind].items():
        if not isinstance(record[name], kind):
            raise ValueError(f"{name} is {record[name]!r}")
    if task.kind == "multiple_choice":
        choices = tuple(record["choices"])
        made = Example((record["query"],) * len(choices), choices, record["gold"])
    elif task.kind == "schema":
        contexts = tuple(record["context_options"])
        made = Example(contexts, (record["continuation"],) * len(contexts), record["gold"])
    else:
        made = Example((record["context"].strip(),), (record["continuation"],))
    if not 0 <= made.gold < len(made.contexts) or not all(isinstance(text, str) for text in made.continuations):
        raise ValueError(f"gold is {made.gold}, and there are {len(made.contexts)} options")
    return made


def prompts(task: CoreTask, examples: list[Example], index: int) -> Iterator[tuple[str, str]]:
    """What stands before each option of an example, the answered ones included, and the same with the option."""
    others = [other for other in range(len(examples)) if other != index]
    chosen = random.Random(SHOTS_SEED + index).sample(others, task.shots)
    shots = "".join(f"{task.delimiter.join(examples[other].answer)}\n\n" for other in chosen)
    for context, continuation in zip(examples[index].contexts, examples[index].continuations, strict=True):
        before = f"{shots}{context}{task.delimiter}"
        yield before, before + continuation
