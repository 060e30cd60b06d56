"""What the transformer computes: causality, windows, cache, switches, losses."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanochat.model import IGNORE, KVCache, ModelConfig, Transformer
from nanochat.model.transformer import Block

CONFIG = replace(ModelConfig.from_depth(3, 100, 32), width=64, head_dim=16)
FULL = replace(CONFIG, smear=True, backout=True, query_key_scale=1.2, value_gate_channels=12, value_gate_range=3.0)


def awake(config: ModelConfig = CONFIG, **options: object) -> Transformer:
    """A model whose output projections and gates are not zero, so that every part matters."""
    model = Transformer(config, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def some_ids(rows: int = 2, time: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocab_size", [100, 4096])
def test_an_untrained_model_knows_nothing(vocab_size: int) -> None:
    ids = some_ids()
    losses = Transformer(replace(CONFIG, vocab_size=vocab_size)).token_losses(ids, ids.roll(-1, 1))
    assert losses.mean().item() == pytest.approx(log(vocab_size), rel=0.01)


@pytest.mark.parametrize("attention", ["blocked", "sdpa"])
def test_a_later_token_changes_nothing_before_it(attention: str) -> None:
    model, ids = awake(attention=attention), some_ids()
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert (before[:, 20:] - after[:, 20:]).abs().amax(-1).min() > 0


@pytest.mark.parametrize("attention", ["blocked", "sdpa"])
def test_windows_limit_what_is_seen(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer with a window of 16, then one that sees all: after the first, position 16 knows nothing of position 0."""
    model, ids = awake(replace(CONFIG, depth=2, window_pattern="S"), attention=attention), some_ids()
    leave, after_block = Block.leave, []

    def watched(self: Block, x: Tensor, attended: Tensor) -> Tensor:
        after_block.append(leave(self, x, attended))
        return after_block[-1]

    monkeypatch.setattr(Block, "leave", watched)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        model(ids), model(changed)
    first, last, first_changed, last_changed = after_block
    assert (first - first_changed)[:, 15].abs().max() > 1e-6
    assert torch.equal(first[:, 16:], first_changed[:, 16:])
    assert (last - last_changed)[:, 31].abs().max() > 1e-6


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, window_pattern="S"), FULL])
@pytest.mark.parametrize("attention", ["blocked", "sdpa"])
def test_a_document_in_a_row_is_what_it_is_alone(attention: str, config: ModelConfig) -> None:
    """Positions are relative, so that with attention within documents nothing tells where in a row one stands."""
    bos, lengths = CONFIG.vocab_size - 1, (5, 20, 7)
    config = replace(config, document_attention=True)
    model, across = (awake(replace(config, document_attention=within), attention=attention, bos_id=bos)
                     for within in (True, False))
    ids = some_ids(1) % bos
    parts = ids.split(lengths, dim=1)
    for part in parts:
        part[:, 0] = bos
    with torch.no_grad():
        together, alone = model(ids), torch.cat([model(part) for part in parts], dim=1)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(across(ids)[:, :5], alone[:, :5], rtol=1e-4, atol=1e-5)
        assert (across(ids) - alone)[:, 5:].abs().amax(-1).min() > 1e-3
    with pytest.raises(ValueError, match="bos_id"):
        awake(config)(ids)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, window_pattern="S"),
                                    replace(CONFIG, window_pattern="S", short_window=3), FULL])
def test_the_cache_gives_what_the_whole_row_gives(config: ModelConfig) -> None:
    model, lengths = awake(config), torch.tensor([3, 11, 1])
    ids = some_ids(3)
    cache = KVCache.empty(model.config, 3, 32, torch.float32)
    with torch.no_grad():
        whole = model(ids)
        prompt = model(ids[:, :11], cache)  # padded on the right: only `lengths` of it count
        cache.advance(lengths)
        rows = torch.arange(3)
        torch.testing.assert_close(prompt[rows, lengths - 1], whole[rows, lengths - 1])
        for count in (1, 4, 1, 1):
            positions = cache.lengths[:, None] + torch.arange(count)
            logits = model(ids.gather(1, positions), cache)
            torch.testing.assert_close(logits, whole[rows[:, None], positions], rtol=1e-4, atol=1e-5)
            cache.advance(count)


@pytest.mark.parametrize("config", [CONFIG, FULL])
def test_rows_of_a_cache_can_be_dropped(config: ModelConfig) -> None:
    model, ids = awake(config), some_ids(3)
    cache = KVCache.empty(model.config, 3, 32, torch.float32)
    with torch.no_grad():
        whole = model(ids)
        model.hidden(ids[:, :8], cache)
        cache.advance(torch.tensor([8, 5, 6]))
        kept = cache.select(torch.tensor([2, 0]))
        logits = model(torch.stack([ids[2, 6:7], ids[0, 8:9]]), kept)
    torch.testing.assert_close(logits[:, 0], torch.stack([whole[2, 6], whole[0, 8]]), rtol=1e-4, atol=1e-5)


LATER = ("value_embeddings", "value_gate", "residual_scalars", "input_scalars", "smear_gate", "smear_scale",
         "backout_scale")


def test_classic_has_none_of_the_later_parameters() -> None:
    names = [name for name, _ in Transformer(ModelConfig.from_depth(2, 100, 32, classic=True)).named_parameters()]
    assert not [name for name in names if any(part in name for part in LATER)]


@pytest.mark.parametrize(("switch", "parts"), [("value_embeddings", LATER[:2]), ("residual_scalars", LATER[2:3]),
                                               ("input_scalars", LATER[3:4]), ("smear", LATER[4:6]),
                                               ("backout", LATER[6:])])
def test_each_switch_adds_its_parameters_and_they_matter(switch: str, parts: tuple[str, ...]) -> None:
    without = Transformer(replace(FULL, **{switch: False}))
    model = awake(FULL)
    added = dict(model.named_parameters()).keys() - dict(without.named_parameters()).keys()
    assert added
    assert all(name.split(".")[0] in parts or name.split(".")[-1] in parts for name in added)
    ids = some_ids()
    model.loss_sum(ids, ids.roll(-1, 1)).backward()
    for name in added:
        assert model.get_parameter(name).grad.abs().max() > 0


def test_the_softcap_bounds_logits_and_leaves_small_ones() -> None:
    model = Transformer(CONFIG)
    direction = model.head.detach()[:1]
    with torch.no_grad():
        huge = model.logits(direction * 1e9)
        small = model.logits(direction)
    assert huge.abs().max() <= CONFIG.logit_softcap
    assert huge.abs().max() > 0.99 * CONFIG.logit_softcap
    torch.testing.assert_close(small, direction @ model.head.detach().T, rtol=1e-3, atol=1e-5)


def expected_losses(model: Transformer, ids: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy the long way: log-softmax of the logits in double precision."""
    log_probabilities = model(ids).double().log_softmax(-1)
    picked = log_probabilities.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return torch.where(targets == IGNORE, 0.0, -picked)


def test_losses_are_the_cross_entropy_of_the_logits() -> None:
    model, ids = awake(), some_ids()
    targets = ids.roll(-1, 1)
    targets[0, :7] = IGNORE
    losses = model.token_losses(ids, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected_losses(model, ids, targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.loss_sum(ids, targets), losses.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_the_loss_are_those_of_the_long_way(dtype: torch.dtype) -> None:
    ids = some_ids()
    targets = ids.roll(-1, 1)
    targets[1, 5:] = IGNORE
    exact, model = awake(), awake(compute_dtype=dtype)
    (expected_losses(exact, ids, targets).sum() * 0.5).backward()
    (model.loss_sum(ids, targets) * 0.5).backward()
    for name, parameter in model.named_parameters():
        expected = exact.get_parameter(name).grad
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), (name, error)


def test_micro_batches_add_up_and_empty_ones_are_harmless() -> None:
    ids, whole, cut = some_ids(4), awake(), awake()
    targets = ids.roll(-1, 1)
    targets[2:] = IGNORE
    targets[0, :9] = IGNORE
    valid = (targets != IGNORE).sum()
    (whole.loss_sum(ids, targets) / valid).backward()
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):
        (cut.loss_sum(ids[rows], targets[rows]) / valid).backward()
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(cut.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert cut.loss_sum(ids[2:], targets[2:]).item() == 0.0


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(123)
    first = Transformer(CONFIG, seed=5)
    torch.manual_seed(321)
    second, third = Transformer(CONFIG, seed=5), Transformer(CONFIG, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding, third.embedding)


class OneDeviceDraws(TorchFunctionMode):
    """Counts draws by whether generator and tensor are of one device, as kernels want it; on a CPU all of them are."""

    matched = mismatched = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        generator = (kwargs or {}).get("generator")
        if generator is not None:
            matched = generator.device == args[0].device
            self.matched, self.mismatched = self.matched + matched, self.mismatched + (not matched)
        return func(*args, **(kwargs or {}))


def test_a_model_on_another_device_is_initialised() -> None:
    model = Transformer(CONFIG).to("meta")
    with OneDeviceDraws() as draws:
        model.initialise(0)
    assert draws.matched == 2 + len(model.value_embeddings) + 2 * CONFIG.depth  # embedding, head, tables, qkv, mlp_in
    assert draws.mismatched == 0
