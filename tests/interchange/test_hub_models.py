"""Models of the hub: hf:owner/name, from a server on loopback."""

import errno
import time

import pytest

from nanochat.errors import UserError
from nanochat.inference.load import newest_checkpoint
from nanochat.interchange import bring_in
from nanochat.interchange.bring_in import brought_in
from nanochat.interchange.export import export_transformers
from nanochat.model import ModelConfig, Transformer
from tests.full_disk import small_disk
from tests.hub import Fault, Hub
from tests.interchange.published import MARCH_14, sizes, weights_of, write_folder


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def theirs(tmp_path, tokenizer):
    """Public nanochat's files of two steps, by their paths in a repository."""
    meta = sizes(tokenizer.vocab_size)
    for step in (100, 650):
        write_folder(tmp_path / "theirs", meta, weights_of(MARCH_14, meta, seed=step), tokenizer, step)
    found = {path.name: path.read_bytes() for path in (tmp_path / "theirs").rglob("*") if path.is_file()}
    return found | {"optim_000650_rank0.pt": b"x" * 1000, "README.md": b"hello"}


def test_the_last_step_and_nothing_else_is_fetched(hub, theirs, tmp_path):
    hub.add("owner/model", theirs)
    directory = brought_in("hf:owner/model", tmp_path / "cache")
    assert newest_checkpoint(directory, warn=pytest.fail).step == 650
    fetched = {each.path for each in hub.requests if each.method == "GET" and "/" not in each.path}
    assert fetched == {"model_000650.pt", "meta_000650.json", "tokenizer.pkl"}
    hub.stop()
    assert brought_in("hf:owner/model", tmp_path / "cache") == directory  # what is there needs no network


def test_a_model_in_transformers_format(hub, tokenizer, tmp_path):
    config = ModelConfig.from_depth(2, 320, 48)
    export_transformers(Transformer(config), tokenizer, tmp_path / "out", chat=True, name="x")
    hub.add("owner/model", {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    checkpoint = newest_checkpoint(brought_in("hf:owner/model@main", tmp_path / "cache"), warn=pytest.fail)
    assert checkpoint.state["stage"] == "sft"
    assert not [each for each in hub.requests if each.path.endswith(".py")]  # code of others is not even fetched


def test_a_connection_that_breaks_is_made_again(hub, theirs, tmp_path):
    hub.add("owner/model", theirs)
    hub.fail("model_000650.pt", Fault(cut_after=10_000))
    assert brought_in("hf:owner/model", tmp_path / "cache")


@pytest.mark.parametrize(("name", "status", "said"), [
    ("hf:nobody/nothing", 0, "the hub has no nobody/nothing"),
    ("hf:justname", 0, "names no repository"),
    ("hf:owner/na me", 0, "na me names no repository"),
    ("hf:owner/x.git", 0, r"x\.git names no repository"),
    ("hf:owner/other", 0, "holds no model of nanochat"),
    ("hf:owner/other", 503, "cannot reach"),
])  # fmt: skip
def test_what_cannot_be_had_is_said_at_once(hub, tmp_path, name, status, said):
    hub.add("owner/other", {"config.json": b'{"model_type": "llama"}', "README.md": b"hello"})
    hub.status = status
    began = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        brought_in(name, tmp_path / "cache")
    assert caught.value.hint
    assert time.monotonic() - began < 10


def test_only_the_name_of_a_file_tells_its_meta(hub, theirs, tmp_path):
    folder = "base_checkpoints/nanochat_model_d20.pt"
    hub.add("owner/model", {f"{folder}/{name}": theirs[name] for name in ("model_000650.pt", "meta_000650.json")})
    hub.add("owner/model", {"tokenizer/tokenizer.pkl": theirs["tokenizer.pkl"]})
    assert newest_checkpoint(brought_in("hf:owner/model", tmp_path / "cache"), warn=pytest.fail).step == 650


def test_of_a_model_of_another_kind_only_its_config_is_fetched(hub, tmp_path):
    weights = {"model.safetensors": b"x" * 1000, "original/model.safetensors": b"x" * 1000}
    hub.add("owner/llama", {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", **weights})
    hub.add("owner/weights", weights)
    for name, said in (("llama", "model_type is 'llama'"), ("weights", "holds no model of nanochat")):
        with pytest.raises(UserError, match=said):
            brought_in(f"hf:owner/{name}", tmp_path / "cache")
    assert {each.path for each in hub.requests if "api/" not in each.path} == {"config.json"}


def test_a_full_disk_is_not_the_network(hub, theirs, tmp_path):
    hub.add("owner/model", theirs)
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(UserError, match=f"the disk is full at {disk}") as caught:
            brought_in("hf:owner/model", disk / "cache")
        assert "make room" in caught.value.hint
    assert brought_in("hf:owner/model", tmp_path / "cache")


def test_nor_is_a_cache_that_may_not_be_written(hub, theirs, tmp_path, monkeypatch):
    hub.add("owner/model", theirs)

    def refused(*args, **how):
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/hub")

    monkeypatch.setattr(bring_in, "snapshot_download", refused)
    with pytest.raises(UserError, match=r"/cache/hub cannot be written: Permission denied"):
        brought_in("hf:owner/model", tmp_path / "cache")


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot reach") as caught:
        brought_in("hf:owner/model", tmp_path / "cache")
    assert "HF_ENDPOINT" in caught.value.hint
    assert time.monotonic() - began < 10
