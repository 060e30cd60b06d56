"""The byte-level BPE tokenizer: rustbpe learns the merges, tiktoken applies them.

On disk it is one JSON file whose fingerprint is checked on loading, so a checkpoint that carries the fingerprint
can never be read with another vocabulary.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken

from nanochat.errors import UserError

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

# How text is split before merging: GPT-4's alternatives, with two changes.
# Digits stand alone, so that a small model can copy and add numbers.
# No look-ahead: a run of spaces before a word is a piece of its own instead of lending its last space to the word.
# The regex then runs as an automaton: three times the speed, and linear time on any text (GPT-4's pattern overflows
# the stack on a million spaces).
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]"
    r"|\s+"
)

FILE_NAME = "tokenizer.json"
_TEXTS_PER_TASK = 32
_MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


class Tokenizer:
    """Ids 0..n-1 are byte strings in order of merging, the special tokens follow.

    Args:
        tokens: the byte string of every ordinary id; all 256 single bytes are among them.
        pattern: the regular expression that splits text before merging.
        special_tokens: names of the ids after the ordinary ones.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: str = SPLIT_PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> None:
        self.tokens, self.pattern, self.special_tokens = tuple(tokens), pattern, tuple(special_tokens)
        self._special_ids = {name: len(self.tokens) + i for i, name in enumerate(special_tokens)}
        self._encoding = tiktoken.Encoding(
            name="nanochat",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self._special_ids,
        )
        self.vocab_size = len(self.tokens) + len(self._special_ids)
        self.bos_id = self._special_ids["<|bos|>"]
        self.fingerprint = _fingerprint(self._contents())

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns merges until the vocabulary, special tokens included, has `vocab_size` entries or the text is used up.

        Deterministic: the same documents give the same fingerprint.

        Raises:
            UserError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
        """
        if vocab_size < _MIN_VOCAB_SIZE:
            raise UserError(
                f"a vocabulary of {vocab_size} cannot hold 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
                f"use a vocabulary size of at least {_MIN_VOCAB_SIZE}",
            )
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(documents), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
        by_rank = sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])
        return cls([token for token, _ in by_rank])

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Reads what `save` wrote.

        Raises:
            UserError: the file is missing, cannot be understood, or does not match its fingerprint.
        """
        path = directory / FILE_NAME
        if not path.is_file():
            raise UserError(f"there is no tokenizer at {path}", "run the tokenizer stage first")
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
            expected = contents.pop("fingerprint")
            if _fingerprint(contents) != expected:
                raise ValueError("the contents do not match the fingerprint")
            tokens = [base64.b64decode(token, validate=True) for token in contents["tokens"]]
            return cls(tokens, contents["pattern"], contents["special_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the tokenizer file {path} is damaged: {error}", "restore the file, or delete it and train it again"
            ) from error

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json`, whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self._contents(), "fingerprint": self.fingerprint}, ensure_ascii=False, indent=0)
        partial = directory / f".{FILE_NAME}.{os.getpid()}"
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(directory / FILE_NAME)
        finally:
            partial.unlink(missing_ok=True)

    def _contents(self) -> dict:
        return {
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
            "tokens": [base64.b64encode(token).decode("ascii") for token in self.tokens],
        }

    def encode(self, text: str) -> list[int]:
        """Ids of any text. The name of a special token inside `text` is ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        """`encode` of every text, on several threads: tiktoken releases the GIL."""
        # Several texts a task: with one each, as in tiktoken's own batch call, short texts take three times as long.
        groups = [texts[i : i + _TEXTS_PER_TASK] for i in range(0, len(texts), _TEXTS_PER_TASK)]
        with ThreadPoolExecutor(num_threads) as pool:
            encoded = pool.map(lambda group: [self.encode(text) for text in group], groups)
            return list(chain.from_iterable(encoded))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes; special tokens as their names."""
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, with the replacement character where a character's bytes are incomplete."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def special(self, name: str) -> int:
        """Id of a special token by name, such as `<|bos|>`."""
        return self._special_ids[name]

    def token_bytes(self) -> np.ndarray:
        """Number of UTF-8 bytes of each token, int32 (vocab_size,): 0 for special tokens, which stand for no text."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        lengths[: len(self.tokens)] = [len(token) for token in self.tokens]
        return lengths


def _fingerprint(contents: dict) -> str:
    """SHA-256 over everything that decides how text becomes ids."""
    canonical = json.dumps(contents, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
