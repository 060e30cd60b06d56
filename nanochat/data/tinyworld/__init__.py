"""TinyWorld: a deterministic generator of plain-English data about a small world, and of questions about it."""

from nanochat.data.tinyworld.files import NUM_DOCUMENTS, World, write

__all__ = ["NUM_DOCUMENTS", "World", "write"]
