"""Nothing in a pickle executes (invariant 4), and whatever is in it, the answer is one line."""

import os
import pickle
from collections import OrderedDict

import pytest
import tiktoken
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.errors import UserError
from nanochat.interchange.unpickling import EncodingParts, read_encoding, read_tensors


class Harm:
    """Runs a command where it is unpickled."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


def encoding() -> tiktoken.Encoding:
    ranks = {bytes([value]): value for value in range(256)}
    return tiktoken.Encoding("tiny", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens={"<|bos|>": 256})


def test_harm_is_real(file, mark):
    """Without an allow-list, it would be done."""
    pickle.loads(pickle.dumps(Harm(mark)))
    assert mark.exists()


@pytest.mark.parametrize("wrapped", [lambda harm: harm, lambda harm: {"lm_head.weight": torch.ones(2), "x": harm},
                                     lambda harm: OrderedDict(x=harm)])  # fmt: skip
def test_tensors_with_harm_are_refused(file, mark, wrapped):
    torch.save(wrapped(Harm(mark)), file)
    with pytest.raises(UserError, match=r"refused.*system") as caught:
        read_tensors(file)
    assert not mark.exists()
    assert "\n" not in caught.value.message
    assert "weights_only" not in caught.value.message  # torch's own message advises to switch the allow-list off


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read(file, legacy):
    saved = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(3, dtype=torch.bfloat16))
    torch.save(saved, file, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(file)
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_tensors_and_nothing_else(file):
    torch.save({"a": torch.ones(2), "b": 3}, file)
    with pytest.raises(UserError, match="does not hold tensors by name"):
        read_tensors(file)


def test_an_encoding_is_read(file):
    file.write_bytes(pickle.dumps(encoding()))
    found = read_encoding(file)
    assert found.pattern == r"\w+|\W+"
    assert len(found.ranks) == 256
    assert found.special_tokens == {"<|bos|>": 256}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrapped", [lambda harm: harm, lambda harm: [encoding(), harm]])
def test_an_encoding_with_harm_is_refused(file, mark, wrapped, protocol):
    file.write_bytes(pickle.dumps(wrapped(Harm(mark)), protocol))
    with pytest.raises(UserError, match="refused"):
        read_encoding(file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins eval", "tiktoken.registry get_encoding", "tiktoken.core Encoding.encode",
                                  "nanochat.interchange.unpickling _Recorded"])  # fmt: skip
def test_no_other_name_is_looked_up(file, name):
    module, _, attribute = name.partition(" ")
    file.write_bytes(f"\x80\x04c{module}\n{attribute}\n.".encode("latin-1"))
    with pytest.raises(UserError, match="refused"):
        read_encoding(file)


@pytest.mark.parametrize("state", ["cl100k_base", None, {"pat_str": 3, "mergeable_ranks": {}, "special_tokens": {}},
                                   {"pat_str": "", "mergeable_ranks": {"a": 1}, "special_tokens": {}}])  # fmt: skip
def test_an_encoding_without_its_parts(file, state, monkeypatch):
    monkeypatch.setattr(tiktoken.Encoding, "__getstate__", lambda self: state)
    file.write_bytes(pickle.dumps(encoding()))
    with pytest.raises(UserError, match=r"cannot read|does not hold"):
        read_encoding(file)


def read_or_error(read, file):
    """What is read, or what the user is told; any other error is raised."""
    try:
        return read(file)
    except UserError as error:
        return error


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3000), st.integers(0, 255))
def test_garbage_and_bit_rot_are_nothing_but_a_users_error(file, garbage, place, value):
    spoiled = bytearray(pickle.dumps(encoding()))
    spoiled[place % len(spoiled)] = value
    for content in (garbage, bytes(spoiled)):
        file.write_bytes(content)
        for read, kind in ((read_encoding, EncodingParts), (read_tensors, dict)):
            found = read_or_error(read, file)
            assert isinstance(found, kind) or str(file) in found.message
