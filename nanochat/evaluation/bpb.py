"""Bits per byte: how many bits the model needs for a byte of text, whatever the tokenizer."""

import math

import numpy as np
import torch

from nanochat.data.batches import IGNORE, to_batch
from nanochat.data.dataset import TokenDataset
from nanochat.model import Transformer
from nanochat.workers import Workers


class NoTargets(ValueError):
    """The rows to evaluate hold nothing to predict."""


@torch.no_grad()
def bits_per_byte(
    model: Transformer,
    dataset: TokenDataset,
    token_bytes: torch.Tensor,
    *,
    max_tokens: int,
    rows_per_batch: int,
    workers: Workers,
) -> float:
    """Loss in bits over the UTF-8 bytes of the targets, on rows from all of `dataset`, shared over the workers.

    Rows lie as they were packed, those of the longest documents first, so every so manieth is taken.

    Special tokens have no bytes: neither their loss nor their length counts.

    Args:
        token_bytes: int64 (vocab_size,), bytes of each token.
        max_tokens: how many tokens to look at, at least one row.
    """
    count = min(max(max_tokens // dataset.row_tokens, 1), dataset.num_rows)
    rows = np.arange(count) * dataset.num_rows // count
    mine = rows[workers.rank :: workers.size]
    sums = torch.zeros(2, dtype=torch.float64, device=workers.device)  # nats and bytes; read once, at the end
    for start in range(0, len(mine), rows_per_batch):
        batch = to_batch(*dataset.rows(mine[start : start + rows_per_batch]))
        if workers.device.type == "cuda":
            batch = batch.pinned()
        inputs, targets = (part.to(workers.device, non_blocking=True) for part in (batch.inputs, batch.targets))
        losses = model.token_losses(inputs, targets)
        sizes = torch.where(targets == IGNORE, 0, token_bytes[targets.clamp_min(0)])
        sums += torch.stack(((losses.double() * (sizes > 0)).sum(), sizes.sum().double()))
    nats, total_bytes = workers.sum_tensors(*sums)
    if not total_bytes:
        raise NoTargets("the validation rows hold no text to predict")
    return nats / math.log(2) / total_bytes
