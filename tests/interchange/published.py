"""Public nanochat's checkpoints as its own code writes them, and what its model computes, from its published layout:
github.com/karpathy/nanochat, nanochat/gpt.py, checkpoint_manager.py and tokenizer.py."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.tokenizer import Tokenizer

PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)


@dataclass(frozen=True)
class Version:
    """One of its architectures."""

    scalars: bool = True
    values: bool = True
    channels: int = 32
    gate_range: float = 2.0
    scale: float = 1.0
    base: float = 10_000.0
    tile: int | None = None
    """The part of the context that a short window sees, rounded up to 128; None: half, not rounded."""
    smear: bool = False


OCTOBER = Version(scalars=False, values=False)
JANUARY = Version()
MARCH_9 = Version(channels=12, gate_range=3.0, scale=1.15, base=100_000.0, tile=3)
MARCH_14 = Version(channels=12, gate_range=3.0, scale=1.2, base=100_000.0, tile=4, smear=True)
VERSIONS = {"october": OCTOBER, "january": JANUARY, "march 9": MARCH_9, "march 14": MARCH_14}


def sizes(vocab_size: int, *, context: int = 32, kv_heads: int = 4) -> dict:
    return {"sequence_len": context, "vocab_size": vocab_size, "n_layer": 3, "n_head": 4, "n_kv_head": kv_heads,
            "n_embd": 64}  # fmt: skip


def weights_of(version: Version, meta: dict, seed: int = 0) -> dict[str, Tensor]:
    """Random ones under its names, tables in bf16 and padded to a multiple of 64 as it keeps them."""
    generator = torch.Generator().manual_seed(seed)
    width, depth = meta["n_embd"], meta["n_layer"]
    rows = -(-meta["vocab_size"] // 64) * 64 if version.scalars else meta["vocab_size"]
    kv_width = width // meta["n_head"] * meta["n_kv_head"]

    def some(*shape: int, size: float = 0.2) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    found = {"transformer.wte.weight": some(rows, width, size=1.0).bfloat16(), "lm_head.weight": some(rows, width)}
    for layer in range(depth):
        block = f"transformer.h.{layer}"
        found |= {f"{block}.attn.c_q.weight": some(width, width), f"{block}.attn.c_k.weight": some(kv_width, width),
                  f"{block}.attn.c_v.weight": some(kv_width, width), f"{block}.attn.c_proj.weight": some(width, width),
                  f"{block}.mlp.c_fc.weight": some(4 * width, width),
                  f"{block}.mlp.c_proj.weight": some(width, 4 * width)}  # fmt: skip
        if version.values and has_value(layer, depth):
            found[f"{block}.attn.ve_gate.weight"] = some(meta["n_kv_head"], version.channels)
            found[f"value_embeds.{layer}.weight"] = some(rows, kv_width, size=1.0).bfloat16()
    if version.scalars:
        found |= {"resid_lambdas": 1 + some(depth), "x0_lambdas": some(depth)}
    if version.smear:
        found |= {"smear_gate.weight": some(1, 24), "smear_lambda": some(1, size=1.0), "backout_lambda": some(1)}
    return found


def has_value(layer: int, depth: int) -> bool:
    return layer % 2 == (depth - 1) % 2


def logits_of(version: Version, meta: dict, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """What its model makes of ids (batch, time), fp32."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    depth, heads, context = meta["n_layer"], meta["n_head"], meta["sequence_len"]
    batch, time = ids.shape
    dim, times = meta["n_embd"] // heads, heads // meta["n_kv_head"]
    pattern = meta.get("window_pattern", "L")
    short = context // 2 if version.tile is None else -(-context // version.tile // 128) * 128
    frequencies = 1.0 / version.base ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(time).float(), frequencies)[None, :, None]
    ages = torch.arange(time)[:, None] - torch.arange(time)

    def normed(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    def turned(x: Tensor) -> Tensor:
        left, right = x[..., : dim // 2], x[..., dim // 2 :]
        return normed(torch.cat([left * angles.cos() + right * angles.sin(),
                                 -left * angles.sin() + right * angles.cos()], -1)) * version.scale  # fmt: skip

    x = normed(weights["transformer.wte.weight"][ids])
    if version.smear:
        gate = weights["smear_lambda"] * torch.sigmoid(x[:, 1:, :24] @ weights["smear_gate.weight"].T)
        x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], 1)
    first = x
    for layer in range(depth):
        block = f"transformer.h.{layer}"
        if version.scalars:
            x = weights["resid_lambdas"][layer] * x + weights["x0_lambdas"][layer] * first
        seen = normed(x)
        query, key, value = ((seen @ weights[f"{block}.attn.c_{letter}.weight"].T).view(batch, time, -1, dim)
                             for letter in "qkv")  # fmt: skip
        if f"value_embeds.{layer}.weight" in weights:
            gate = version.gate_range * torch.sigmoid(
                seen[..., : version.channels] @ weights[f"{block}.attn.ve_gate.weight"].T)  # fmt: skip
            value = value + gate[..., None] * weights[f"value_embeds.{layer}.weight"][ids].view_as(value)
        query, key, value = turned(query), turned(key).repeat_interleave(times, 2), value.repeat_interleave(times, 2)
        is_short = pattern[layer % len(pattern)] == "S" and layer < depth - 1
        visible = (ages >= 0) & (ages <= (short if is_short else context))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / dim**0.5
        shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        attended = torch.einsum("bhqk,bkhd->bqhd", shares, value).reshape(batch, time, -1)
        x = x + attended @ weights[f"{block}.attn.c_proj.weight"].T
        hidden = F.relu(normed(x) @ weights[f"{block}.mlp.c_fc.weight"].T) ** 2
        x = x + hidden @ weights[f"{block}.mlp.c_proj.weight"].T
        if layer == depth // 2:
            middle = x
    if version.smear:
        x = x - weights["backout_lambda"] * middle
    raw = (normed(x) @ weights["lm_head.weight"].T)[..., : meta["vocab_size"]]
    return 15 * torch.tanh(raw / 15)


def encoding_of(tokenizer: Tokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        name="rustbpe",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.tokens)},
        special_tokens={name: tokenizer.special(name) for name in tokenizer.special_tokens},
    )


def write_folder(folder: Path, meta: dict, weights: dict[str, Tensor], tokenizer: Tokenizer, step: int = 650) -> Path:
    """As it lies in ~/.cache/nanochat/base_checkpoints/d20, with the tokenizer inside."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / f"model_{step:06d}.pt")
    told = {"run": "dummy", "depth": meta["n_layer"]}
    about = {"step": step, "val_bpb": 0.8, "model_config": meta, "user_config": told}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(about))
    (folder / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding_of(tokenizer)))
    return folder
