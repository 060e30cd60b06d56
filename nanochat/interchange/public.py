"""Checkpoints of public nanochat (github.com/karpathy/nanochat): model_*.pt, meta_*.json, tokenizer.pkl.

Its architecture changed without a mark in the files; each version is told by the parameters it has.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat.errors import UserError
from nanochat.interchange.names import PUBLIC, from_theirs
from nanochat.interchange.unpickling import read_encoding, read_tensors
from nanochat.model import ModelConfig
from nanochat.run import read_json
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import SPECIAL_TOKENS

_MODEL = re.compile(r"model_(\d+)\.pt")
_STAGES = {"base_checkpoints": "base", "mid_checkpoints": "mid", "chatsft_checkpoints": "sft",
           "chatrl_checkpoints": "sft"}  # fmt: skip
_TABLE = re.compile(r"transformer\.wte\.weight|lm_head\.weight|value_embeds\.\d+\.weight")
_HINT = "public nanochat keeps model_*.pt and meta_*.json in one folder, and tokenizer/tokenizer.pkl"


@dataclass(frozen=True)
class PublicCheckpoint:
    """The files of one step."""

    step: int
    model: Path
    meta: Path
    tokenizer: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return self.model, self.meta, self.tokenizer

    @property
    def stage(self) -> str:
        """The stage that trained it: by the folder, as public nanochat names them, or else by what its script was told:
        a depth only for pretraining. Later stages load their model, and any of them can chat."""
        told = read_json(self.meta, _HINT).get("user_config")
        from_scratch = isinstance(told, dict) and "depth" in told
        return _STAGES.get(self.model.parent.parent.name) or ("base" if from_scratch else "sft")


def find_public(path: Path) -> PublicCheckpoint | None:
    """The last step in a folder, or the one whose model_*.pt is named; None where there is nothing of the kind.

    Raises UserError where files are missing beside it, or the path holds several models.
    """
    if path.is_file():
        files = [path] if _MODEL.fullmatch(path.name) else []
    else:
        files = sorted((file for file in path.glob("model_*.pt") if _MODEL.fullmatch(file.name)), key=_step)
    if not files:
        inside = sorted({file.parent for file in path.glob("*_checkpoints/*/model_*.pt")})
        if len(inside) > 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in inside)
            raise UserError(f"{path} holds several models", f"name one of {names} in it")
        return find_public(inside[0]) if inside else None
    model = files[-1]
    meta = model.with_name(f"meta_{_MODEL.fullmatch(model.name)[1]}.json")  # type: ignore[index]
    if not meta.is_file():
        raise UserError(f"{model} has no {meta.name} beside it, which says what its model is", _HINT)
    folder = model.parent
    places = [folder / "tokenizer" / "tokenizer.pkl", folder / "tokenizer.pkl",
              folder.parent.parent / "tokenizer" / "tokenizer.pkl"]  # fmt: skip
    tokenizer = next((place for place in places if place.is_file()), None)
    if tokenizer is None:
        raise UserError(f"there is no tokenizer for {model}: looked for {', '.join(map(str, places))}", _HINT)
    return PublicCheckpoint(_step(model), model, meta, tokenizer)


def read_public(found: PublicCheckpoint) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """The model and its parameters by our names, fp32, and its tokenizer.

    Raises UserError: a file is damaged or refused, or they do not fit together, and what does not.
    """
    tokenizer = tokenizer_of(found.tokenizer)
    meta = _sizes(found.meta)
    if tokenizer.vocab_size != meta["vocab_size"]:
        raise UserError(
            f"{found.tokenizer} has {tokenizer.vocab_size:,} tokens and the model {found.model} {meta['vocab_size']:,}",
            "put the tokenizer there that the model was trained with",
        )
    weights = {name.removeprefix("_orig_mod."): tensor for name, tensor in read_tensors(found.model).items()}
    config = config_of(meta, weights, found.meta)
    weights = _usual(weights, meta)
    return config, from_theirs(weights, PUBLIC, config, str(found.model)), tokenizer


def tokenizer_of(path: Path) -> Tokenizer:
    """Of a pickled tiktoken encoding. Raises UserError."""
    parts = read_encoding(path)
    tokens = sorted(parts.ranks, key=lambda token: parts.ranks[token])
    special = sorted(parts.special_tokens, key=lambda name: parts.special_tokens[name])
    numbers = [*(parts.ranks[token] for token in tokens), *(parts.special_tokens[name] for name in special)]
    problems = [f"it has no {name}" for name in SPECIAL_TOKENS if name not in parts.special_tokens]
    if numbers != list(range(len(numbers))):
        problems.append("its ids are not 0, 1, 2 … with the special tokens last")
    if not {bytes([value]) for value in range(256)} <= parts.ranks.keys():
        problems.append("it cannot write every byte")
    if not problems:
        try:
            return Tokenizer(tokens, parts.pattern, special)
        except ValueError as error:
            problems.append(f"its pattern is none ({error})")
    raise UserError(f"{path} is not a tokenizer of public nanochat: {'; '.join(problems)}", _HINT)


def config_of(meta: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> ModelConfig:
    """The architecture by the sizes that meta_*.json gives and the parameters there are. Raises UserError."""
    context, width = meta["sequence_len"], meta["n_embd"]
    gates = {tensor.size(-1) for name, tensor in weights.items() if name.endswith("attn.ve_gate.weight")}
    smear = "smear_gate.weight" in weights
    channels = next(iter(gates), 32)
    tile = 128  # short windows are multiples of FlashAttention's tile since March 2026
    if smear:  # March 14, 2026
        later = {"short_window": -(-context // 4 // tile) * tile + 1, "value_gate_range": 3.0, "query_key_scale": 1.2,
                 "rope_base": 1e5}  # fmt: skip
    elif channels == 12:  # March 9, 2026
        later = {"short_window": -(-context // 3 // tile) * tile + 1, "value_gate_range": 3.0, "query_key_scale": 1.15,
                 "rope_base": 1e5}  # fmt: skip
    else:  # its windows count the tokens before a position, ours the position too
        later = {"short_window": context // 2 + 1}
    try:
        return ModelConfig(
            depth=meta["n_layer"],
            width=width,
            head_dim=width // meta["n_head"],
            vocab_size=meta["vocab_size"],
            max_seq_len=context,
            value_embeddings=bool(gates),
            residual_scalars="resid_lambdas" in weights,
            input_scalars="x0_lambdas" in weights,
            window_pattern=meta.get("window_pattern", "L").upper(),
            value_gate_channels=channels,
            smear=smear,
            backout="backout_lambda" in weights,
            **later,
        )
    except ValueError as error:
        raise UserError(f"{source} describes an impossible model: {error}", _HINT) from None


def _sizes(path: Path) -> dict[str, Any]:
    """The model_config of a meta_*.json."""
    found = read_json(path, _HINT).get("model_config")
    numbers = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"}
    if not isinstance(found, dict) or not numbers <= found.keys():
        raise UserError(f"{path} has no model_config with {', '.join(sorted(numbers))}", _HINT)
    unknown = found.keys() - numbers - {"window_pattern"}
    if unknown:
        raise UserError(
            f"{path} describes a model with {', '.join(sorted(unknown))}, which public nanochat does not have",
            "models of its descendants with other architectures cannot be brought in",
        )
    wrong = [name for name in sorted(numbers) if not isinstance(found[name], int) or found[name] < 1]
    if wrong or not isinstance(found.get("window_pattern", ""), str) or found["n_head"] % found["n_kv_head"]:
        raise UserError(f"{path} makes no sense: {', '.join(wrong) or 'its heads or windows'}", _HINT)
    return found


def _usual(weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same model without rows beyond the vocabulary, which it pads its tables with and never predicts, and with a
    key and value head for every query head."""
    times, vocab = meta["n_head"] // meta["n_kv_head"], meta["vocab_size"]
    found = {}
    for name, tensor in weights.items():
        if tensor.ndim == 2 and _TABLE.fullmatch(name):
            tensor = tensor[:vocab]
        if times > 1 and re.search(r"\.c_k\.|\.c_v\.|ve_gate", name):
            tensor = tensor.unflatten(0, (meta["n_kv_head"], -1)).repeat_interleave(times, 0).flatten(0, 1)
        if times > 1 and name.startswith("value_embeds."):
            tensor = tensor.unflatten(1, (meta["n_kv_head"], -1)).repeat_interleave(times, 1).flatten(1, 2)
        found[name] = tensor
    return found


def _step(path: Path) -> int:
    return int(_MODEL.fullmatch(path.name)[1])  # type: ignore[index]
