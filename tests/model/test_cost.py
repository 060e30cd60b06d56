"""Parameter counts against the built module, FLOPs against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.model import ModelConfig, Transformer, count_parameters, forward_flops_per_token, train_flops_per_token

CONFIGS = {
    "default": ModelConfig.from_depth(4, 512, 64),
    "classic": ModelConfig.from_depth(4, 512, 64, classic=True),
    "shallow": ModelConfig.from_depth(1, 300, 32),
    "odd depth": ModelConfig.from_depth(3, 512, 64),
    "wide": ModelConfig.from_depth(8, 512, 32),
    "full": replace(ModelConfig.from_depth(3, 512, 64), smear=True, backout=True, value_gate_channels=12),
    "mixed": replace(ModelConfig.from_depth(2, 512, 64), value_embeddings=False, input_scalars=False),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_counted_exactly(config: ModelConfig) -> None:
    model, count = Transformer(config), count_parameters(config)
    named = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert count.total == sum(named.values())
    assert count.embedding == named["embedding"]
    assert count.head == named["head"]
    assert count.value_embeddings == sum(n for name, n in named.items() if name.startswith("value_embeddings"))
    assert count.gates == sum(n for name, n in named.items() if name.endswith("_gate"))
    assert count.scalars == sum(n for name, n in named.items() if name.endswith(("scalars", "scale")))


@pytest.mark.parametrize("seq_len", [32, 16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_equal_those_torch_counts(config: ModelConfig, seq_len: int) -> None:
    model = Transformer(config, attention="blocked")
    ids = torch.randint(config.vocab_size, (2, seq_len))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    assert counter.get_total_flops() == forward_flops_per_token(config, seq_len) * ids.numel()
    with FlopCounterMode(display=False) as counter:
        model.loss_sum(ids, ids).backward()
    assert counter.get_total_flops() == train_flops_per_token(config, seq_len) * ids.numel()


def test_a_window_is_charged_for_what_it_sees() -> None:
    full = ModelConfig.from_depth(4, 512, 64)
    windowed = replace(full, window_pattern="SL")  # layers 0 and 2 see 32 of 64 positions
    assert forward_flops_per_token(full, 64) - forward_flops_per_token(windowed, 64) == 2 * 4 * full.width * 32
