"""Text to token ids and back: byte-level BPE trained on the run's own data, and the chat format."""

from nanochat.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer.chat import check_messages, render, render_prompt

__all__ = ["SPECIAL_TOKENS", "Tokenizer", "check_messages", "render", "render_prompt"]
