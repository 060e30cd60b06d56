"""What is trained."""

from nanochat.model.cache import KVCache
from nanochat.model.config import ModelConfig
from nanochat.model.cost import count_parameters, forward_flops_per_token, train_flops_per_token
from nanochat.model.transformer import IGNORE, Transformer

__all__ = ["IGNORE", "KVCache", "ModelConfig", "Transformer", "count_parameters", "forward_flops_per_token",
           "train_flops_per_token"]
