"""A corpus of small shards, and what serves them."""

import io
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from nanochat.corpora import CORPORA, Corpus
from nanochat.data.hub import CorpusFiles
from tests.hub import Hub

CLIMBMIX = CORPORA["climbmix"]
WORDS = ["the", "cat", "river", "stone", "walks", "slowly", "under", "bright", "seven", "tall", "trees", "and", "sings"]


def shard(number: int, documents: int = 200) -> bytes:
    """Parquet as the corpora have it, other text for each number."""
    words = np.random.default_rng(number).choice(WORDS, (documents, 60))
    texts = [f"shard {number} document {place}: " + " ".join(row) for place, row in enumerate(words.tolist())]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, compression="zstd")
    return file.getvalue()


def serve(hub: Hub, shards: int, corpus: Corpus = CLIMBMIX, documents: int = 200) -> dict[str, bytes]:
    """Have the hub serve the first training shards and the one for validation. Returns the files."""
    numbers = [*range(shards), corpus.validation]
    files = {corpus.file(number): shard(number, documents) for number in numbers}
    hub.add(corpus.repository, files)
    return files


def files_of(folder: Path, count: int, **options: object) -> CorpusFiles:
    return CorpusFiles(CLIMBMIX, folder, range(count), **{"ahead": count, **options})
