"""The corpora of web text that --data may name: what of a data hub they are, and how much a shard of them holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """Shuffled text in parquet shards, column `text`; the last shard is for validation."""

    name: str
    repository: str
    """Dataset on the hub, owner/name."""
    num_shards: int
    licence: str
    """Of the text it was made from, for people."""
    shard_chars: int = 250_000_000
    shard_bytes: int = 100_000_000
    chars_per_token: float = 4.8

    def file(self, shard: int) -> str:
        return f"shard_{shard:05d}.parquet"

    @property
    def validation(self) -> int:
        """The number of the shard that is never trained on."""
        return self.num_shards - 1

    def shards_for(self, tokens: float, chars: float) -> int:
        """About how many of the training shards hold so many tokens and so many characters; at least one."""
        return min(max(-int(-max(tokens * self.chars_per_token, chars) // self.shard_chars), 1), self.validation)


# Shards of 250M characters, about 100 MB each with zstd, by the script that made both (nanochat, dev/
# repackage_data_reference.py); their numbers by its dataset.py and autoresearch's prepare.py (0 to 1,822 and 0 to
# 6,542); 4.8 characters a token is what nanochat reports for its tokenizer on this text. Licences by the cards of
# nvidia/Nemotron-ClimbMix and HuggingFaceFW/fineweb-edu.
CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("climbmix", "karpathy/climbmix-400b-shuffle", 6543, "CC BY-NC 4.0: not for commercial use"),
        Corpus("fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", 1823, "ODC-By 1.0"),
    )
}
