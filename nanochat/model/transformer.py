"""The transformer: rotary positions, QK norm, squared ReLU, untied head, soft-capped logits, norms without parameters.

Master weights are fp32; every product runs in `compute_dtype`. The 2026 additions (value embeddings, residual and input
scalars, sliding windows, smear, backout) are switches of the config; with all of them off it is the October 2025
nanochat architecture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.attention import HEADS_FIRST, PLAIN, Documents, attend, attend_cached, cached_mask
from nanochat.model.cache import KVCache
from nanochat.model.compiler import leave_room_for_graphs, take_vector_instructions_for_granted, tell_of_determinism
from nanochat.model.config import SMEAR_CHANNELS, ModelConfig
from nanochat.model.fp8 import fp8_linear
from nanochat.model.lookup import lookup, sort_for_gradients
from nanochat.model.loss import CHUNK_TOKENS, IGNORE, chunk_terms, linear_cross_entropy
from nanochat.model.packed import LARGE, Packed, can_pack, few_rows, linear
from nanochat.model.sorted_ids import Sorted

MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")  # of a block, but for its gate


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without parameters (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.size(-1),))


def rotary_angles(seq_len: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and, for the first half of a head and the second, sines of both signs: (seq_len, 2, head_dim / 2),
    fp32."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(seq_len, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.stack((cos, cos), dim=1), torch.stack((sin, -sin), dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's two halves as pairs. x: (…, time, head, head_dim); cos, sin: (…, time, 1, 2, head_dim / 2)."""
    halves = x.float().unflatten(-1, (2, -1))
    return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x.dtype)


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream. Matrices are kept as (…, out, in).

    What lies before and after attention are two functions, so that each can be compiled once for all layers.
    """

    def __init__(self, config: ModelConfig, layer: int, *, heads_first: bool, fp8: bool) -> None:
        super().__init__()
        self.heads_first = heads_first
        self.fp8 = fp8
        self.packed: dict[str, Packed] = {}
        width = config.width
        self.head_dim, self.window = config.head_dim, config.window(layer)
        self.qkv = nn.Parameter(torch.empty(3, width, width))
        self.attention_out = nn.Parameter(torch.empty(width, width))
        self.mlp_in = nn.Parameter(torch.empty(4 * width, width))
        self.mlp_out = nn.Parameter(torch.empty(width, 4 * width))
        has_value = config.has_value_embedding(layer)
        gate = (config.num_heads, config.value_gate_channels)
        self.value_gate = nn.Parameter(torch.empty(gate)) if has_value else None
        self.gate_range, self.scale = config.value_gate_range, config.query_key_scale

    def linear(self, x: Tensor, name: str, *, normed: bool = False, squared_relu: bool = False,
               add: Tensor | None = None) -> Tensor:
        """See `nanochat.model.packed.linear`; in fp8 only to train, so that what is evaluated is what is kept."""
        if self.packed and few_rows(x):
            return self.packed[name].linear(x, normed=normed, squared_relu=squared_relu, add=add)
        kind = fp8_linear if self.fp8 and torch.is_grad_enabled() else F.linear
        weight = self.matrix(name).to(x.dtype)
        return linear(x, lambda rows: kind(rows, weight), normed=normed, squared_relu=squared_relu, add=add)

    def matrix(self, name: str) -> Tensor:
        """(out, in); queries, keys and values are one."""
        return getattr(self, name).flatten(0, -2)

    def enter(self, x: Tensor, start: Tensor, residual: Tensor | None, share: Tensor | None,
              value_embedding: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The residual stream as this block sees it (batch, time, width), and its queries, keys and values, contiguous
        as attention wants them: (batch, head, time, head_dim) if `heads_first`, else (batch, time, head, head_dim).

        Args:
            x, start: the stream and what it was before the first block, (batch, time, width).
            residual, share: factors on these two, or None.
            value_embedding: (batch, time, width) or None.
            cos, sin: (batch or 1, time, 1, 2, head_dim / 2).
        """
        if residual is not None:
            x = x * residual
        if share is not None:
            x = x + start * share
        normed = None if self.value_gate is None else norm(x)
        product = self.linear(x, "qkv", normed=True) if normed is None else self.linear(normed, "qkv")
        qkv = product.view(*x.shape[:2], 3, -1, self.head_dim)
        query, key, value = qkv.unbind(2)  # (batch, time, head, head_dim) each
        if self.value_gate is not None and normed is not None and value_embedding is not None:
            seen = normed[..., : self.value_gate.size(1)]
            gate = self.gate_range * torch.sigmoid(F.linear(seen, self.value_gate.to(x.dtype)))
            value = value + gate[..., None] * value_embedding.to(x.dtype).view_as(value)
        if torch.is_grad_enabled():
            query, key = norm(rotate(query, cos, sin)), norm(rotate(key, cos, sin))
        else:  # the same with half as many operations, which are most of what a token beside its products costs
            query, key = norm(rotate(qkv[:, :, :2], cos[:, :, None], sin[:, :, None])).unbind(2)
        if self.scale != 1:
            query, key = query * self.scale, key * self.scale
        if self.heads_first:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return x, query.contiguous(), key.contiguous(), value.contiguous()

    def leave(self, x: Tensor, attended: Tensor) -> Tensor:
        """The stream after attention (batch, head, time, head_dim) and MLP."""
        x = self.linear(attended.transpose(1, 2).reshape(x.shape), "attention_out", add=x)
        hidden = self.linear(x, "mlp_in", normed=True, squared_relu=True)
        return self.linear(hidden, "mlp_out", add=x)


class Transformer(nn.Module):
    """A decoder-only language model.

    Args:
        config: the architecture.
        compute_dtype: what matrix products run in; parameters stay fp32.
        attention: training backend, see `nanochat.model.attention`.
        seed: of the initial weights; they do not depend on torch's global generator. None: they are to be loaded, and
            not drawn, which takes seconds for a large model.
        bos_id: the token that begins each document; what `document_attention` goes by.
        fp8: train with the products of the blocks in fp8, see `nanochat.model.fp8`.
    """

    def __init__(self, config: ModelConfig, *, compute_dtype: torch.dtype = torch.float32, attention: str = "sdpa",
                 seed: int | None = 0, bos_id: int | None = None, fp8: bool = False) -> None:
        super().__init__()
        self.bos_id = bos_id
        self.config, self.compute_dtype, self.attention = config, compute_dtype, attention
        table = (config.vocab_size, config.width)
        self.embedding = nn.Parameter(torch.empty(table))
        self.value_embeddings = nn.ParameterDict({
            str(layer): nn.Parameter(torch.empty(table)) for layer in range(config.depth)
            if config.has_value_embedding(layer)})
        self.heads_first = attention in HEADS_FIRST
        self.blocks = nn.ModuleList(Block(config, layer, heads_first=self.heads_first, fp8=fp8)
                                    for layer in range(config.depth))
        self.head = nn.Parameter(torch.empty(table))
        self.residual_scalars = nn.Parameter(torch.empty(config.depth)) if config.residual_scalars else None
        self.input_scalars = nn.Parameter(torch.empty(config.depth)) if config.input_scalars else None
        self.smear_gate = nn.Parameter(torch.empty(1, SMEAR_CHANNELS)) if config.smear else None
        self.smear_scale = nn.Parameter(torch.empty(1)) if config.smear else None
        self.backout_scale = nn.Parameter(torch.empty(1)) if config.backout else None
        cos, sin = rotary_angles(config.max_seq_len, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos[:, None], persistent=False)  # (max_seq_len, 1, 2, head_dim / 2)
        self.register_buffer("sin", sin[:, None], persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self.packed_head: Packed | None = None
        self._enter, self._leave, self._loss_terms, self._parts = Block.enter, Block.leave, chunk_terms, PLAIN
        if seed is not None:
            self.initialise(seed)

    def compile_training(self) -> None:
        """Let `torch.compile` fuse what training does between the matrix products; results stay what they were.

        Regional: one graph before attention (two where some layers have value embeddings) and one after it, shared by
        all layers, so that the time to compile does not grow with depth; and what loss and blocked attention do between
        their products.
        """
        tell_of_determinism()
        leave_room_for_graphs()
        if self.head.device.type == "cpu":
            take_vector_instructions_for_granted()
        self._enter = torch.compile(Block.enter, fullgraph=True, dynamic=False)
        self._leave = torch.compile(Block.leave, fullgraph=True, dynamic=False)
        self._loss_terms = torch.compile(chunk_terms, fullgraph=True, dynamic=False)
        self._parts = PLAIN.compiled()

    def pack(self) -> None:
        """Make generation faster where this CPU can, at the price of a copy of all matrices, which must not change any
        more."""
        if not can_pack(self.head):
            return
        read = self.head.nbytes + sum(getattr(block, name).nbytes for block in self.blocks for name in MATRICES)
        large = read >= LARGE
        for block in self.blocks:
            assert isinstance(block, Block)
            block.packed = {name: Packed(block.matrix(name), large=large) for name in MATRICES}
        self.packed_head = Packed(self.head, large=large)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Initial weights as public nanochat found best: unit-variance embeddings, uniform projections of variance
        1/width, zero output projections (each block starts as the identity), a nearly silent head. Drawn on the CPU, so
        that they are the same on any device."""
        generator = torch.Generator().manual_seed(seed)
        bound = (3 / self.config.width) ** 0.5
        for name, parameter in self.named_parameters():
            drawn = torch.empty_like(parameter, device="cpu")
            if name == "embedding":
                parameter.copy_(drawn.normal_(0.0, 1.0, generator=generator))
            elif name == "head":
                parameter.copy_(drawn.normal_(0.0, 0.001, generator=generator))
            elif name.startswith("value_embeddings") or name.endswith(("qkv", "mlp_in")):
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
            elif name == "residual_scalars":
                parameter.fill_(1.0)
            elif name == "input_scalars":
                parameter.fill_(0.1)
            elif name == "backout_scale":
                parameter.fill_(0.2)
            else:  # attention_out, mlp_out, smear; value_gate: a gate of zero lets 2·sigmoid(0) = 1 through
                parameter.zero_()

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The residual stream after the last block, normed: (batch, time, width), from token ids (batch, time).

        With a cache, row b's tokens stand at positions cache.lengths[b], cache.lengths[b] + 1, … and are one document.
        """
        if cache is None:
            at = None
            cos, sin = self.cos[: ids.size(1)][None], self.sin[: ids.size(1)][None]
        else:
            at = cache.next_slots(ids.size(1))
            positions = at[1]
            cos, sin = self.cos[positions], self.sin[positions]
            masks = {window: cached_mask(positions, cache.capacity, window, self.compute_dtype)
                     for window in {self.config.window(layer) for layer in range(self.config.depth)}}
        # Compiled graphs are for training's one shape; evaluation and generation change theirs with every call.
        training = cache is None and torch.is_grad_enabled()
        enter, leave = (self._enter, self._leave) if training else (Block.enter, Block.leave)
        parts = self._parts if training else PLAIN
        attention = "sdpa" if self.attention == "flex" and not training else self.attention  # flex compiles each shape
        documents = None
        if self.config.document_attention and cache is None:
            if self.bos_id is None:
                raise ValueError("document_attention needs to know bos_id")
            documents = Documents.of(ids, self.bos_id)
        by_token = sort_for_gradients(ids, self.config.vocab_size)
        x = self._embedded(ids, by_token)
        if self.smear_gate is not None:
            x = self._smeared(x, ids, cache, at)
        start, middle = x, None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            residual = None if self.residual_scalars is None else self.residual_scalars[layer]
            share = None if self.input_scalars is None else self.input_scalars[layer]
            table = self.value_embeddings[str(layer)] if self.config.has_value_embedding(layer) else None
            value_embedding = None if table is None else lookup(ids, table, self.compute_dtype, by_token)
            x, query, key, value = enter(block, x, start, residual, share, value_embedding, cos, sin)
            if not self.heads_first:  # not in `enter`: gradients of what it returns are copied if not contiguous
                query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            if cache is None:
                attended = attend(query, key, value, block.window, attention, documents, parts)
            else:
                assert at is not None
                key, value = cache.write(layer, key, value, at)
                attended = attend_cached(query, key, value, masks[block.window])
            x = leave(block, x, attended)
            if self.backout_scale is not None and layer == self.config.depth // 2:
                middle = x
        if self.backout_scale is not None and middle is not None:
            x = x - self.backout_scale.to(x.dtype) * middle
        return norm(x)

    def _embedded(self, ids: Tensor, by_token: Sorted | None = None) -> Tensor:
        return norm(lookup(ids, self.embedding, self.compute_dtype, by_token).to(self.compute_dtype))

    def _smeared(self, x: Tensor, ids: Tensor, cache: KVCache | None,
                 at: tuple[Tensor, Tensor] | None) -> Tensor:
        """Embeddings (batch, time, width) with a share of the one before each; the first of a row has none before it,
        nor has the first of a document where documents do not see each other."""
        assert self.smear_gate is not None
        assert self.smear_scale is not None
        if cache is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
            if self.config.document_attention:
                assert self.bos_id is not None
                before = before * ids.ne(self.bos_id)[..., None]
        else:
            assert at is not None
            before = self._embedded(cache.write_ids(ids, at)) * (at[1] > 0)[..., None]
        gate = torch.sigmoid(F.linear(x[..., :SMEAR_CHANNELS], self.smear_gate.to(x.dtype)))
        return x + self.smear_scale.to(x.dtype) * gate * before

    def logits(self, hidden: Tensor) -> Tensor:
        """Soft-capped fp32 logits (…, vocab_size) of normed hidden states (…, width)."""
        if self.packed_head is not None and few_rows(hidden):
            raw = self.packed_head.linear(hidden).float()
        else:
            raw = F.linear(hidden, self.head.to(hidden.dtype)).float()
        # cap·tanh(raw / cap), written with exp: the CPU compiler's exp is about twice as fast as its tanh.
        return self.config.logit_softcap * (1 - 2 / (torch.exp(raw * (2 / self.config.logit_softcap)) + 1))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (batch, time, vocab_size) in fp32 for token ids (batch, time)."""
        return self.logits(self.hidden(ids, cache))

    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of each target (batch, time), fp32; 0 where the target is IGNORE."""
        hidden, flat = self.hidden(ids).flatten(0, 1), targets.flatten()
        chunk = CHUNK_TOKENS[hidden.device.type]
        losses = [F.cross_entropy(self.logits(x), target, ignore_index=IGNORE, reduction="none")
                  for x, target in zip(hidden.split(chunk), flat.split(chunk), strict=True)]
        return torch.cat(losses).view_as(targets)

    def loss_sum(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Sum of `token_losses`: divided by the step's number of valid targets it is the loss (invariant 5)."""
        if not torch.is_grad_enabled():
            return self.token_losses(ids, targets).sum()
        return linear_cross_entropy(self.hidden(ids).flatten(0, 1), self.head, targets.flatten(),
                                    self.config.logit_softcap, self._loss_terms)
