"""One stable hash, used twice: for what training never sees, and for the random numbers of one document.

Python's own `hash` changes from process to process, so nothing here uses it. What is held out depends on the thing
itself and on nothing else: not on the seed, not on the stage, not on the order of generation.
"""

from hashlib import blake2b
from random import Random


def stable_hash(*parts: object) -> int:
    """64 bits that depend only on the text of `parts`; the same in every process and on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def held_out(*parts: object, one_in: int = 8) -> bool:
    """Whether a combination (a sum, a word to spell, a cast of a story) belongs to the evaluation alone."""
    return stable_hash("held out", *parts) % one_in == 0


def document_rng(*parts: object) -> Random:
    """The random numbers of one document, which is thereby a function of (seed, collection, index)."""
    return Random(stable_hash("document", *parts))
