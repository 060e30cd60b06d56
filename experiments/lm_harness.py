"""A model of ours as EleutherAI's harness asks it (extra [lm-eval])."""

from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nanochat.errors import UserError
from nanochat.evaluation.options import Asked, Score, cut_to, score_options
from nanochat.inference.engine import Engine

BATCH = 32  # prompts that are continued at a time
MAX_NEW_TOKENS = 256  # where a task does not say


def ask_harness(
    engine: Engine, names: list[str], *, tasks_of: Path | None, limit: int | None, shots: int | None
) -> dict[str, dict[str, Any]]:
    """The harness's results by task: its metrics, each with a standard error where there is one.

    Args:
        tasks_of: a folder with tasks in the harness's YAML besides its own.
        limit: examples of each task, at most.
        shots: examples to show before each question; None for what each task says.

    Raises:
        UserError: there is no such task, or its data cannot be had.
    """
    manager = _tasks(names, tasks_of)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise UserError(f"the harness has no task {', '.join(unknown)}", "lm-eval ls tasks lists what it has")
    try:
        found = simple_evaluate(HarnessModel(engine), tasks=names, num_fewshot=shots, limit=limit, task_manager=manager,
                                log_samples=False)  # fmt: skip
    except (OSError, DatasetsError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "see that the hub can be reached, or set HF_ENDPOINT"
        raise UserError(f"the harness cannot ask {', '.join(names)}: {reason}", hint) from error
    return found["results"]


def _tasks(names: list[str], own: Path | None) -> TaskManager:
    """Those in the user's folder alone where nothing else is asked for: the harness's own are fourteen thousand files,
    which take ten seconds and more to read."""
    if own is None:
        return TaskManager()
    alone = TaskManager(include_path=str(own), include_defaults=False)
    return alone if set(names) <= set(alone.all_subtasks) else TaskManager(include_path=str(own))


class HarnessModel(TemplateLM):
    """Every text begins with `<|bos|>`, as those that the model was trained on did."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    @property
    def eot_token_id(self) -> int:
        return self.engine.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        ids = self.engine.tokenizer.encode(string)
        return ids if add_special_tokens is False else [self.eot_token_id, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each request the log-probability of its continuation, and whether greedy decoding writes it; those of one
        context are read together."""
        context = self.engine.model.config.max_seq_len
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, before, _) in enumerate(requests):
            groups.setdefault(tuple(before), []).append(number)
        asked = []
        for place, numbers in enumerate(groups.values()):
            pairs = [requests[number][1:] for number in numbers]
            asked.append(Asked(place, [cut_to(context, [*before, *after], len(before)) for before, after in pairs]))
        scores: list[Score | None] = [None] * len(requests)
        members = list(groups.values())
        for each, found in score_options(self.engine, asked):
            for number, score in zip(members[each.index], found, strict=True):
                scores[number] = score
        return [(score.total, score.likeliest) for score in scores if score is not None]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        context = self.engine.model.config.max_seq_len - 1  # of each window, which ends with a token more
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, context, 1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += total
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy unless the task samples; ends before the first of the strings that the task stops at."""
        found: list[str] = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(number)
        for numbers in kinds.values():
            how = requests[numbers[0]].args[1]
            for start in range(0, len(numbers), BATCH):
                some = numbers[start : start + BATCH]
                texts = self._continued([requests[number].args[0] for number in some], how)
                for number, text in zip(some, texts, strict=True):
                    found[number] = text
        return found

    def _continued(self, contexts: list[str], how: dict[str, Any]) -> list[str]:
        engine, until = self.engine, how.get("until") or []
        most = min(int(how.get("max_gen_toks", MAX_NEW_TOKENS)), engine.model.config.max_seq_len // 2)
        room = engine.model.config.max_seq_len - most
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
        replies = engine.complete(prompts, max_new_tokens=most, temperature=temperature)
        ordinary = len(engine.tokenizer.tokens)  # the special tokens follow, and are no text
        texts = [engine.tokenizer.decode([token for token in reply if token < ordinary]) for reply in replies]
        stops = [until] if isinstance(until, str) else until
        return [text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))] for text in texts]
