"""The same training step from public parts: transformers' NanoChat, PyTorch's Muon, AdamW and cross-entropy."""

import time
from importlib.util import find_spec
from statistics import median

import torch
import torch.nn.functional as F

from nanochat.errors import UserError
from nanochat.model import ModelConfig

WARM_UP_STEPS = 3


def check() -> None:
    if find_spec("transformers") is None:
        raise UserError("--public needs transformers", 'pip install -e ".[hf]"')


def step_ms(config: ModelConfig, rows: int, dtype: str, steps: int, *, compiled: bool) -> float:
    """The median step in milliseconds, on random tokens. The model is `config`'s without what transformers' does not
    have, such as value embeddings; bfloat16 is by autocast.
    """
    from transformers import NanoChatConfig, NanoChatForCausalLM

    torch.compiler.reset()
    model = NanoChatForCausalLM(NanoChatConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=4 * config.width,
        num_hidden_layers=config.depth, num_attention_heads=config.num_heads, num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_seq_len, use_cache=False))  # fmt: skip
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    optimizers = (torch.optim.Muon(matrices, lr=0.002), torch.optim.AdamW(others, lr=1e-3, fused=True))
    forward = torch.compile(model) if compiled else model
    shape, generator = (rows, config.max_seq_len), torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(config.vocab_size, shape, generator=generator) for _ in range(2))

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = forward(input_ids=ids).logits
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return 1e3 * (time.perf_counter() - start)

    for _ in range(1 + WARM_UP_STEPS):
        step()
    return median(step() for _ in range(steps))
