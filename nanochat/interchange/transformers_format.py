"""Models as `transformers` keeps them: config.json, safetensors, tokenizer.json, chat template.

What can be written as its own NanoChatForCausalLM is; everything else brings its modelling file along.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.errors import UserError
from nanochat.interchange.names import TRANSFORMERS, from_theirs
from nanochat.model import ModelConfig
from nanochat.run import read_json
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import SPECIAL_TOKENS

CLASSIC, OWN = "nanochat", "nanochat_experiments"  # values of model_type in config.json
MODELING_FILE = Path(__file__).with_name("modeling_nanochat_experiments.py")
_EPSILON = torch.finfo(torch.float32).eps  # F.rms_norm's own
_HINT = "give a folder that `runs.py export` wrote, or a nanochat model in the format of transformers"


def is_classic(config: ModelConfig) -> bool:
    """Whether NanoChatForCausalLM computes the same."""
    later = (config.value_embeddings, config.residual_scalars, config.input_scalars, config.smear, config.backout)
    windows = [config.window(layer) for layer in range(config.depth)]
    return not any((*later, *windows)) and config.query_key_scale == 1


def config_json(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of a model; generation ends where ours does."""
    end = tokenizer.special("<|assistant_end|>")
    common = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": [end, tokenizer.bos_id],
        "pad_token_id": tokenizer.bos_id,
        "dtype": "float32",
        "tie_word_embeddings": False,
    }
    if is_classic(config):
        return common | {
            "architectures": ["NanoChatForCausalLM"],
            "model_type": CLASSIC,
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "intermediate_size": 4 * config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_heads,
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": _EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
            "final_logit_softcapping": config.logit_softcap,
        }
    module = MODELING_FILE.stem
    return common | {
        "architectures": ["NanochatExperimentsForCausalLM"],
        "model_type": OWN,
        "auto_map": {
            "AutoConfig": f"{module}.NanochatExperimentsConfig",
            "AutoModelForCausalLM": f"{module}.NanochatExperimentsForCausalLM",
        },
        "architecture": asdict(config),
    }


def read_transformers(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer]:
    """The model of a folder and its parameters by our names, fp32, and its tokenizer.

    Raises UserError: a file is missing or damaged, or they do not fit together, and what does not.
    """
    config = config_of(folder / "config.json")
    tokenizer = tokenizer_of(folder / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size:,} tokens and the model {config.vocab_size:,}",
            "put the tokenizer there that the model was trained with",
        )
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {file}: {error}", "get it again") from None
    return config, from_theirs(weights, TRANSFORMERS, config, str(folder)), tokenizer


def tokenizer_of(path: Path) -> Tokenizer:
    """Of a byte-level BPE tokenizer.json whose ids are in order of merging. Raises UserError."""
    found = read_json(path, _HINT)
    try:
        vocabulary = sorted(found["model"]["vocab"].items(), key=lambda item: item[1])
        special = sorted(((each["content"], each["id"]) for each in found["added_tokens"]), key=lambda item: item[1])
        splits = [each for each in _flat(found["pre_tokenizer"]) if each["type"] == "Split"]
        ids = [number for _, number in (*(item for item in vocabulary if item not in special), *special)]
        if ids != list(range(len(ids))) or len(splits) != 1 or not set(SPECIAL_TOKENS) <= dict(special).keys():
            raise ValueError("it is not that of a nanochat")
        tokens = [bytes(_bytes_of_characters()[character] for character in token)
                  for token, number in vocabulary if (token, number) not in special]  # fmt: skip
        return Tokenizer(tokens, splits[0]["pattern"]["Regex"], [name for name, _ in special])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}", _HINT) from None


@cache
def characters_of_bytes() -> dict[int, str]:
    """How GPT-2 wrote bytes as visible characters, and byte-level tokenizers since: those that are visible in Latin-1
    stand for themselves, the others for characters from 256 on, in order."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [value for value in range(256) if value not in visible]
    return {value: chr(value) for value in visible} | {value: chr(256 + place) for place, value in enumerate(hidden)}


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: value for value, character in characters_of_bytes().items()}


def _flat(pre_tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def config_of(path: Path) -> ModelConfig:
    """The architecture by a config.json. Raises UserError where it is none of ours."""
    found = read_json(path, _HINT)
    try:
        if found.get("model_type") == OWN:
            known = {each.name for each in fields(ModelConfig)}
            return ModelConfig(**{key: value for key, value in found["architecture"].items() if key in known})
        if found.get("model_type") != CLASSIC:
            raise ValueError(f"its model_type is {found.get('model_type')!r}, not {CLASSIC} or {OWN}")
        _check_classic(found)
        width, heads = found["hidden_size"], found["num_attention_heads"]
        rope = found.get("rope_parameters") or {}
        return ModelConfig(
            depth=found["num_hidden_layers"],
            width=width,
            head_dim=width // heads,
            vocab_size=found["vocab_size"],
            max_seq_len=found["max_position_embeddings"],
            value_embeddings=False,
            residual_scalars=False,
            input_scalars=False,
            rope_base=rope.get("rope_theta", found.get("rope_theta", 10_000.0)),
            logit_softcap=found.get("final_logit_softcapping", 15.0),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} does not describe a model that can be brought in: {error}", _HINT) from None


def _check_classic(found: Mapping[str, Any]) -> None:
    """Raises ValueError for what NanoChatForCausalLM can be and ours cannot."""
    heads = found["num_attention_heads"]
    if (found.get("num_key_value_heads") or heads) != heads:
        raise ValueError("it has fewer key heads than query heads")
    if found["intermediate_size"] != 4 * found["hidden_size"] or found.get("hidden_act", "relu2") != "relu2":
        raise ValueError("its MLP is another")
    if found.get("tie_word_embeddings") or found.get("attention_bias"):
        raise ValueError("it ties its tables or has biases")


def has_template(folder: Path) -> bool:
    """Whether the model of a folder was taught to chat, as far as its files tell."""
    path = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (
        path.exists() and re.search(r'"chat_template"\s*:\s*"', json.dumps(read_json(path, _HINT))) is not None
    )
