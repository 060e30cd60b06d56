"""Pieces of tensors packed one after the other into flat segments, and back."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nanochat.optim.partition import Piece, Segment


def views(tensors: Mapping[str, Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
    """Each piece of its tensor, one-dimensional, in the tensor's memory. The tensors must be contiguous."""
    return [tensors[piece.name].detach().view(-1)[piece.first:piece.last] for piece in pieces]


def pack(tensors: Mapping[str, Tensor], segments: Sequence[Segment], length: int) -> Tensor:
    """A copy of the pieces, (segments, length), each segment padded with zeros."""
    like = next(iter(tensors.values()))
    parts = []
    for segment in segments:
        parts += [*views(tensors, segment), like.new_zeros(length - sum(piece.size for piece in segment))]
    return torch.cat(parts).view(len(segments), length)


def unpack(packed: Iterable[Tensor], segments: Sequence[Segment], tensors: Mapping[str, Tensor]) -> None:
    """Copy each piece to its place in the tensors; `packed` has one flat tensor for each segment, padded or not."""
    for flat, segment in zip(packed, segments, strict=True):
        sizes = [piece.size for piece in segment]
        if segment:
            torch._foreach_copy_(views(tensors, segment), flat[:sum(sizes)].split(sizes))
