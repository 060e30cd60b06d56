"""A plan knows beforehand which token shards its run will find; never more than there are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.data.sources import open_sources
from nanochat.planning.hardware import Hardware
from nanochat.planning.resolve import Request, resolve
from nanochat.run import create
from nanochat.training.prepare import prepare_stage, prepare_tokenizer
from nanochat.training.prepared import made_since, note_tokens, tokens_are_there

CPU = Hardware("a test's processor", "cpu", 1, 2, 24 * 2**30, {"float32": 3e11, "bfloat16": 1e11})
SETTINGS = ("tokenizer.vocab_size=512", "tokenizer.max_chars=100000", "base.eval_tokens=512")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("<|endoftext|>".join(f"The {number}. of many sheep sleeps under a tree." for number in range(3000)))
    return path


def config_of(text, *settings, **asked):
    request = Request(data=str(text), stages=("tokenizer", "base"), depth=1, max_seq_len=128, total_batch_size=256,
                      device_batch_size=2, compile="off", assignments=(*SETTINGS, *settings), **asked)  # fmt: skip
    return resolve(request, CPU, compiler=None).config


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory, cache):
    """A run's configuration, a cache of its own, and the data that was made there."""
    config, directory = config_of(text), tmp_path_factory.mktemp("prepared")
    run, mine = create(directory / "run", config, {}), directory / "cache"
    sources = open_sources(config.data, cache)
    tokenizer = prepare_tokenizer(run, config, sources, lambda text: None)
    return config, mine, {"base": prepare_stage("base", config, sources, tokenizer, mine)}


@pytest.fixture
def made(prepared, tmp_path):
    """The same in a copy of the cache, and told to later plans."""
    config, original, data = prepared
    mine = Path(shutil.copytree(original, tmp_path / "cache"))
    assert not tokens_are_there(config, mine), "nobody has said so"
    note_tokens(config, mine, data)
    return config, mine, data


def test_the_same_run_finds_them(made):
    config, mine, _ = made
    assert tokens_are_there(config, mine)
    assert tokens_are_there(replace(config, seed=7, model=replace(config.model, depth=5)), mine)


def test_until_one_is_gone(made):
    config, mine, data = made
    shutil.rmtree(mine / "shards" / data["base"].val.directories[0].name)
    assert not tokens_are_there(config, mine)


@pytest.mark.parametrize(
    "change", ["tokenizer.vocab_size=600", "tokenizer.max_chars=90000", "base.packing=best_fit", "base.eval_tokens=768",
               "base.num_iterations=9", "model.max_seq_len=64"],
)  # fmt: skip
def test_another_run_does_not(made, text, change):
    config, mine, _ = made
    assert config_of(text, change) != config
    assert not tokens_are_there(config_of(text, change), mine)


def test_nor_does_one_of_other_text(made, text, tmp_path):
    config, mine, data = made
    own = Path(shutil.copy(text, tmp_path))
    config = replace(config, data=str(own))
    note_tokens(config, mine, data)
    assert tokens_are_there(config, mine)
    own.write_text(own.read_text() + "And one more.")
    assert not tokens_are_there(config, mine)
    own.unlink()
    assert not tokens_are_there(config, mine)


@pytest.mark.parametrize("content", ["", "{}", "3", "[1]", '["no such shard"]', "[[]]"])
def test_a_damaged_note_says_nothing(made, content):
    config, mine, _ = made
    (note,) = (mine / "prepared").iterdir()
    note.write_text(content)
    assert not tokens_are_there(config, mine)


def test_the_length_of_training_matters_only_where_not_all_is_tokenised(made, cache):
    config, mine, data = made
    world = replace(config, data="tinyworld")
    note_tokens(world, mine, data)
    assert tokens_are_there(replace(world, base=replace(world.base, num_iterations=9)), mine)


def test_conversations_are_told_apart_too(made, tmp_path):
    config, mine, data = made
    ours, theirs = (tmp_path / f"{name}.jsonl" for name in ("ours", "theirs"))
    for path in (ours, theirs):
        path.write_text("{}")
    own = replace(config, stages=("tokenizer", "mid"), chat=str(ours))
    note_tokens(own, mine, data)
    assert tokens_are_there(own, mine)
    assert not tokens_are_there(replace(own, chat=str(theirs)), mine)
    chats = replace(config, stages=("tokenizer", "mid"), chat="public", train_tokens=1000)
    note_tokens(chats, mine, data)
    assert tokens_are_there(replace(chats, train_tokens=2000, base=replace(chats.base, packing="best_fit")), mine)
    for other in (
        replace(chats, chat="tinyworld"),
        replace(chats, mid=replace(chats.mid, num_iterations=chats.mid.num_iterations + 1)),
        replace(chats, stages=("tokenizer", "mid", "sft")),
    ):
        assert not tokens_are_there(other, mine)
    assert tokens_are_there(replace(chats, mid=replace(chats.mid, packing="best_fit")), mine), "theirs is one way"
    world = replace(chats, chat="tinyworld")
    note_tokens(world, mine, data)
    assert tokens_are_there(replace(world, mid=replace(world.mid, num_iterations=7)), mine)


def test_what_was_made_is_counted(made, text):
    data = made[2]
    shards = [*data["base"].train.directories, *data["base"].val.directories]
    sizes = [json.loads((shard / "manifest.json").read_text())["bytes"] for shard in shards]
    assert made_since(set(), data) == (sum(sizes), 0)
    assert made_since({shards[0]}, data) == (sum(sizes[1:]), 0)
    assert made_since(set(shards[0].parent.iterdir()), data) == (0, 0)
    documents = data["base"].train.num_documents + data["base"].val.num_documents
    assert made_since(set(), {"mid": data["base"]}) == (sum(sizes), documents)
