"""The default architecture of nanochat-experiments for transformers; lies beside exported weights and needs no more.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

SMEAR_CHANNELS = 24


class NanochatExperimentsConfig(PreTrainedConfig):
    """`architecture` is the ModelConfig of the program that trained it, as a dict."""

    model_type = "nanochat_experiments"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    def __init__(self, architecture: dict | None = None, **others) -> None:
        self.architecture = architecture or {}
        get = self.architecture.get
        # What transformers asks of every model. A smearing model caches its token ids too, as one layer more.
        self.hidden_size = get("width", 0)
        self.num_hidden_layers = get("depth", 0) + int(get("smear", False))
        self.num_attention_heads = self.num_key_value_heads = get("width", 0) // get("head_dim", 1)
        self.vocab_size = get("vocab_size", 0)
        self.max_position_embeddings = get("max_seq_len", 0)
        others.setdefault("tie_word_embeddings", False)
        super().__init__(**others)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (batch, head, time, head_dim); cos, sin: (batch, 1, time, head_dim / 2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, architecture: dict, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, architecture["head_dim"]
        self.scale, self.gate_range = architecture["query_key_scale"], architecture["value_gate_range"]
        width, channels = architecture["width"], architecture["value_gate_channels"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        has_value = has_value_embedding(architecture, layer)
        self.value_gate = nn.Linear(channels, width // self.head_dim, bias=False) if has_value else None

    def forward(self, x: Tensor, value_embedding: Tensor | None, angles: tuple[Tensor, Tensor], mask: Tensor,
                cache: DynamicCache | None) -> Tensor:
        batch, time, _ = x.shape
        query, key, value = (project(x).view(batch, time, -1, self.head_dim).transpose(1, 2)
                             for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.value_gate is not None and value_embedding is not None:
            gate = self.gate_range * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))
            embedded = value_embedding.to(x.dtype).view(batch, time, -1, self.head_dim).transpose(1, 2)
            value = value + gate.transpose(1, 2)[..., None] * embedded
        query, key = (norm(rotate(each, *angles)) * self.scale for each in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(attended.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)).square())


class Layer(nn.Module):
    def __init__(self, architecture: dict, layer: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(architecture, layer), MLP(architecture["width"])


class NanochatExperimentsModel(nn.Module):
    """Everything before the head."""

    def __init__(self, architecture: dict) -> None:
        super().__init__()
        self.architecture = architecture
        depth, table = architecture["depth"], (architecture["vocab_size"], architecture["width"])
        self.embed_tokens = nn.Embedding(*table)
        self.value_embeddings = nn.ModuleDict({str(layer): nn.Embedding(*table) for layer in range(depth)
                                               if has_value_embedding(architecture, layer)})
        self.layers = nn.ModuleList(Layer(architecture, layer) for layer in range(depth))
        self.residual_scalars = nn.Parameter(torch.ones(depth)) if architecture["residual_scalars"] else None
        self.input_scalars = nn.Parameter(torch.zeros(depth)) if architecture["input_scalars"] else None
        self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False) if architecture["smear"] else None
        self.smear_scale = nn.Parameter(torch.zeros(1)) if architecture["smear"] else None
        self.backout_scale = nn.Parameter(torch.zeros(1)) if architecture["backout"] else None

    def forward(self, ids: Tensor, attention_mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        seen = cache.get_seq_length() if cache is not None else 0
        if attention_mask is None:
            attention_mask = ids.new_ones(ids.size(0), seen + ids.size(1))
        real = attention_mask.bool()
        all_positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        angles = self._angles(all_positions[:, seen:])
        x = norm(self.embed_tokens(ids))
        if self.smear_gate is not None:
            x = x + self.smear_scale * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS])) * self._before(
                ids, real, cache)
        start, middle = x, None
        for number, layer in enumerate(self.layers):
            if self.residual_scalars is not None:
                x = x * self.residual_scalars[number]
            if self.input_scalars is not None:
                x = x + start * self.input_scalars[number]
            name = str(number)
            value_embedding = self.value_embeddings[name](ids) if name in self.value_embeddings else None
            mask = self._mask(real, ids.size(1), number)
            x = x + layer.self_attn(norm(x), value_embedding, angles, mask, cache)
            x = x + layer.mlp(norm(x))
            if number == len(self.layers) // 2:
                middle = x
        if self.backout_scale is not None:
            x = x - self.backout_scale * middle
        return norm(x)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        head_dim = self.architecture["head_dim"]
        halves = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
        angles = positions[:, None, :, None] * self.architecture["rope_base"] ** -(halves / head_dim)
        return angles.cos().float(), angles.sin().float()

    def _before(self, ids: Tensor, real: Tensor, cache: DynamicCache | None) -> Tensor:
        """Embeddings of the tokens before; zero where there is none."""
        time, known = ids.size(1), ids
        if cache is not None:  # the ids lie in the cache, so that whatever reorders its rows reorders them
            exact = ids[:, None, :, None].float()
            known = cache.update(exact, exact, self.architecture["depth"])[0][:, 0, :, 0].long()
        known, real = F.pad(known, (1, 0))[:, -time - 1 : -1], F.pad(real, (1, 0))[:, -time - 1 : -1]
        return norm(self.embed_tokens(known)) * real[..., None]

    def _mask(self, real: Tensor, time: int, layer: int) -> Tensor:
        """(batch, 1, time, keys): which keys each query sees."""
        keys = torch.arange(real.size(1), device=real.device)
        queries = keys[-time:, None]
        visible = keys <= queries
        if window := window_of(self.architecture, layer):
            visible = visible & (queries - keys < window)
        # A padding position sees itself, so that no row is empty.
        return (visible & real[:, None, :])[:, None] | (keys == queries)


class NanochatExperimentsForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NanochatExperimentsConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: NanochatExperimentsConfig) -> None:
        super().__init__(config)
        self.model = NanochatExperimentsModel(config.architecture)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: DynamicCache | None = None,
                labels: Tensor | None = None, use_cache: bool | None = None,
                past_key_values: DynamicCache | None = None, **unused) -> CausalLMOutputWithPast:
        """`past_key_values` is what transformers before 5.24 calls `cache`."""
        if cache is None:
            cache = past_key_values
        if use_cache and cache is None:
            cache = DynamicCache()
        hidden = self.model(input_ids, attention_mask, cache)
        cap = self.config.architecture["logit_softcap"]
        logits = cap * torch.tanh(self.lm_head(hidden).float() / cap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss, logits, cache)  # by position: the third has two names


def has_value_embedding(architecture: dict, layer: int) -> bool:
    return architecture["value_embeddings"] and layer % 2 == (architecture["depth"] - 1) % 2


def window_of(architecture: dict, layer: int) -> int | None:
    """Tokens that a position sees back, itself included; None for all."""
    pattern = architecture["window_pattern"]
    if pattern[layer % len(pattern)] == "L" or layer == architecture["depth"] - 1:
        return None
    return architecture["short_window"] or max(architecture["max_seq_len"] // 2, 1)
