"""What other programs call our parameters."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nanochat.errors import UserError
from nanochat.model import ModelConfig, Transformer

Scheme = Mapping[str, tuple[str, ...]]
"""Ours -> theirs, with {} for the number of a layer; where there are several, they lie stacked in ours."""

# github.com/karpathy/nanochat, nanochat/gpt.py, October 2025 to March 2026.
PUBLIC: Scheme = {
    "embedding": ("transformer.wte.weight",),
    "head": ("lm_head.weight",),
    "value_embeddings.{}": ("value_embeds.{}.weight",),
    "blocks.{}.qkv": tuple(f"transformer.h.{{}}.attn.c_{letter}.weight" for letter in "qkv"),
    "blocks.{}.attention_out": ("transformer.h.{}.attn.c_proj.weight",),
    "blocks.{}.mlp_in": ("transformer.h.{}.mlp.c_fc.weight",),
    "blocks.{}.mlp_out": ("transformer.h.{}.mlp.c_proj.weight",),
    "blocks.{}.value_gate": ("transformer.h.{}.attn.ve_gate.weight",),
    "residual_scalars": ("resid_lambdas",),
    "input_scalars": ("x0_lambdas",),
    "smear_gate": ("smear_gate.weight",),
    "smear_scale": ("smear_lambda",),
    "backout_scale": ("backout_lambda",),
}

# transformers' NanoChatForCausalLM, with names of our own where it has none.
TRANSFORMERS: Scheme = {
    "embedding": ("model.embed_tokens.weight",),
    "head": ("lm_head.weight",),
    "value_embeddings.{}": ("model.value_embeddings.{}.weight",),
    "blocks.{}.qkv": tuple(f"model.layers.{{}}.self_attn.{letter}_proj.weight" for letter in "qkv"),
    "blocks.{}.attention_out": ("model.layers.{}.self_attn.o_proj.weight",),
    "blocks.{}.mlp_in": ("model.layers.{}.mlp.fc1.weight",),
    "blocks.{}.mlp_out": ("model.layers.{}.mlp.fc2.weight",),
    "blocks.{}.value_gate": ("model.layers.{}.self_attn.value_gate.weight",),
    "residual_scalars": ("model.residual_scalars",),
    "input_scalars": ("model.input_scalars",),
    "smear_gate": ("model.smear_gate.weight",),
    "smear_scale": ("model.smear_scale",),
    "backout_scale": ("model.backout_scale",),
}


def from_theirs(weights: Mapping[str, Tensor], scheme: Scheme, config: ModelConfig, source: str) -> dict[str, Tensor]:
    """The parameters of the model of this config, fp32, of weights by their names.

    Raises UserError naming what is missing, of another shape, or not part of the model.
    """
    with torch.device("meta"):  # only names and shapes
        model = Transformer(config, seed=None)
    wanted = {name: (theirs(scheme, name), parameter.shape) for name, parameter in model.named_parameters()}
    problems = [text for names, shape in wanted.values() for text in _problems(weights, names, shape)]
    known = {name for names, _ in wanted.values() for name in names}
    problems += [f"{name} is not part of the model" for name in sorted(weights.keys() - known)]
    if problems:
        raise UserError(
            f"the weights of {source} do not fit its config: {'; '.join(problems[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""),
            "get the whole checkpoint, weights and config of the same model",
        )
    return {name: torch.stack([weights[each] for each in names]).float() if len(names) > 1
            else weights[names[0]].float() for name, (names, _) in wanted.items()}  # fmt: skip


def to_theirs(parameters: Mapping[str, Tensor], scheme: Scheme) -> dict[str, Tensor]:
    """Weights by their names, of ours."""
    found: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        names = theirs(scheme, name)
        found.update(zip(names, tensor.unbind() if len(names) > 1 else [tensor], strict=True))
    return found


def theirs(scheme: Scheme, name: str) -> tuple[str, ...]:
    """What they call one of our parameters."""
    layer = re.search(r"\.(\d+)", name)
    key = name.replace(layer[0], ".{}") if layer else name
    return tuple(each.format(layer[1]) if layer else each for each in scheme[key])


def _problems(weights: Mapping[str, Tensor], names: tuple[str, ...], shape: torch.Size) -> Iterator[str]:
    expected = shape[1:] if len(names) > 1 else shape
    for name in names:
        if name not in weights:
            yield f"{name} is missing"
        elif weights[name].shape != expected:
            yield f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected)}"
