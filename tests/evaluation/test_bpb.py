import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanochat.data.batches import IGNORE, to_batch
from nanochat.data.shards import build_text_shards
from nanochat.evaluation.bpb import NoTargets, bits_per_byte
from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer
from nanochat.workers import Workers

TEXT = [f"number {i}: a small document, é and all, about nothing much" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 300)


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpb")
    (directory / "text.txt").write_text("<|endoftext|>".join(TEXT))
    return build_text_shards(
        [directory / "text.txt"], tokenizer, directory, split="all", row_tokens=32, packing="best_fit"
    )


def measure(model, dataset, tokenizer, **changes):
    settings = {"max_tokens": 10**9, "rows_per_batch": 5, "workers": Workers(), **changes}
    return bits_per_byte(model, dataset, torch.from_numpy(tokenizer.token_bytes()).long(), **settings)


def test_a_uniform_model_needs_log2_vocabulary_bits_a_token(dataset, tokenizer):
    model = Transformer(ModelConfig.from_depth(1, tokenizer.vocab_size, 32))
    torch.nn.init.zeros_(model.head)
    tokens = sum(len(tokenizer.encode(text)) for text in TEXT)
    size = sum(len(text.encode()) for text in TEXT)
    assert measure(model, dataset, tokenizer) == pytest.approx(
        tokens * math.log2(tokenizer.vocab_size) / size, rel=0.02
    )


def test_it_is_the_loss_in_bits_over_the_bytes_of_the_same_targets(dataset, tokenizer):
    model = Transformer(ModelConfig.from_depth(1, tokenizer.vocab_size, 32))
    torch.nn.init.normal_(model.head, std=0.3)
    batch = to_batch(*dataset.rows(np.arange(dataset.num_rows)))
    nats = size = 0.0
    for loss, target in zip(
        model.token_losses(batch.inputs, batch.targets).flatten(), batch.targets.flatten(), strict=True
    ):
        length = (
            0
            if target == IGNORE
            else len(tokenizer.decode_bytes([int(target)])) * (int(target) not in specials(tokenizer))
        )
        nats += float(loss) * bool(length)
        size += length
    assert measure(model, dataset, tokenizer) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_neither_batch_size_nor_workers_change_it(dataset, tokenizer, monkeypatch):
    model = Transformer(ModelConfig.from_depth(1, tokenizer.vocab_size, 32))
    torch.nn.init.normal_(model.head, std=0.3)
    alone = measure(model, dataset, tokenizer)
    assert measure(model, dataset, tokenizer, rows_per_batch=64) == pytest.approx(alone, rel=1e-6)
    parts = []
    monkeypatch.setattr(Workers, "sum_tensors", lambda self, *values: parts.append(values) or [1.0, 1.0])
    for rank in range(3):
        measure(model, dataset, tokenizer, workers=Workers(rank, 3))
    nats, size = map(sum, zip(*parts, strict=True))
    assert nats / math.log(2) / size == pytest.approx(alone, rel=1e-6)


def test_a_part_is_of_rows_from_all_of_them(dataset, tokenizer):
    """Packed rows begin with the longest documents, so the first are no fair sample."""
    asked = []
    spy = SimpleNamespace(row_tokens=dataset.row_tokens, num_rows=dataset.num_rows,
                          rows=lambda rows: asked.extend(rows) or dataset.rows(rows))  # fmt: skip
    model = Transformer(ModelConfig.from_depth(1, tokenizer.vocab_size, 32))
    part = dataset.num_rows // 3
    measure(model, spy, tokenizer, max_tokens=part * 32)
    assert len(set(asked)) == part
    assert [sum(dataset.num_rows * third // 3 <= row < dataset.num_rows * (third + 1) // 3 for row in asked)
            for third in range(3)] == pytest.approx([part / 3] * 3, abs=1)  # fmt: skip


def test_nothing_to_predict_is_an_error(dataset, tokenizer):
    model = Transformer(ModelConfig.from_depth(1, tokenizer.vocab_size, 32))
    with pytest.raises(NoTargets):
        bits_per_byte(
            model,
            dataset,
            torch.zeros(tokenizer.vocab_size, dtype=torch.int64),
            max_tokens=64,
            rows_per_batch=2,
            workers=Workers(),
        )


def specials(tokenizer: Tokenizer) -> set[int]:
    return {number for number, size in enumerate(tokenizer.token_bytes()) if size == 0}
