"""The product of our own for a few rows: right for any shape, and never in the way of one who has no compiler."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanochat.inference.load import frozen
from nanochat.model import packed
from nanochat.model.gemv import MOST_ROWS, MULTIPLE, gemv
from nanochat.model.transformer import MATRICES
from tests.model.test_transformer import awake, some_ids

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def product() -> Callable[[Tensor, Tensor], Tensor]:
    return gemv() or pytest.skip("no C compiler that knows PyTorch's OpenMP")


@pytest.fixture
def built_anew() -> Iterator[None]:
    gemv.cache_clear()
    yield
    gemv.cache_clear()


@given(
    rows=st.integers(1, MOST_ROWS), out=st.integers(1, 70), width=st.integers(1, 6).map(MULTIPLE.__mul__),
    threads=st.integers(1, 5), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
)  # fmt: skip
def test_every_shape_gives_the_product(product, rows, out, width, threads, dtype, seed):
    """Of whole numbers small enough for bfloat16 to hold each sum: nothing is rounded, whatever the order."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randint(-1, 2, (count, width), generator=generator) for count in (rows, out))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = product(x.to(dtype), weight.to(dtype))
    finally:
        torch.set_num_threads(before)
    assert found.dtype == dtype
    assert torch.equal(found, (x @ weight.T).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_in_float32_and_rounded_once(product, dtype):
    x, weight = torch.randn(3, 1024).to(dtype), torch.randn(500, 1024).to(dtype)
    exact = x.double() @ weight.double().T
    found = product(x, weight)
    # Half a unit in the last place of bfloat16, and what 1,024 float32 sums may be off.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8 if dtype == torch.bfloat16 else 0, atol=2e-4)
    assert torch.equal(product(x[:, None], weight), found[:, None])


@given(rows=st.integers(1, MOST_ROWS), dtype=st.sampled_from(DTYPES), normed=st.booleans(), squared_relu=st.booleans(),
       added=st.booleans(), exponent=st.integers(-4, 2))  # fmt: skip
def test_what_goes_before_and_after_is_as_of_operations_of_their_own(
    product, rows, dtype, normed, squared_relu, added, exponent
):
    """Small numbers too, where the norm's epsilon tells."""
    generator = torch.Generator().manual_seed(rows)
    x, weight, add = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 96), (37, 96), (rows, 37)))
    x, how = x * 10.0**exponent, {"normed": normed, "squared_relu": squared_relu}
    found = product(x, weight, **how, add=add if added else None)
    exact = packed.linear(x.double(), lambda rows: rows @ weight.double().T, **how)
    if normed:  # double would have an epsilon of its own
        inverse = (x.double().square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).rsqrt()
        exact = packed.linear(x.double() * inverse, lambda rows: rows @ weight.double().T, squared_relu=squared_relu)
    exact = exact + add.double() if added else exact
    assert found.dtype == dtype
    off = (found.double() - exact).abs().max() / exact.abs().max()
    assert off < (0.01 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_after_the_product_is_that_of_the_operations(product, dtype):
    """Of whole numbers, whose product is exact: then the same bits."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-1, 2, (count, 96), generator=generator).to(dtype) for count in (2, 50))
    add = torch.randn(2, 50, generator=generator).to(dtype)
    expected = packed.linear(x, lambda rows: rows @ weight.T, squared_relu=True, add=add)
    assert torch.equal(product(x, weight, squared_relu=True, add=add), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_stays_none(product, dtype):
    x, weight = torch.ones(1, MULTIPLE, dtype=dtype), torch.ones(3, MULTIPLE, dtype=dtype)
    weight[1, 5], weight[2, 7] = math.nan, -math.inf
    assert product(x, weight).tolist() == [[MULTIPLE, pytest.approx(math.nan, nan_ok=True), -math.inf]]
    squared = product(x, weight, squared_relu=True).tolist()
    assert squared == [[MULTIPLE**2, pytest.approx(math.nan, nan_ok=True), 0]]


@pytest.mark.usefixtures("product")
@pytest.mark.skipif(not packed.can_pack(torch.ones(2, 2)), reason="this CPU has no oneDNN")
@torch.inference_mode()
def test_a_large_model_is_multiplied_by_it(monkeypatch):
    ids, many = some_ids(1, MOST_ROWS), some_ids(2, MOST_ROWS)
    small = frozen(awake(), torch.float32, "cpu")
    assert small.blocks[0].packed["qkv"].gemv is None
    monkeypatch.setattr("nanochat.model.transformer.LARGE", 0)
    large = frozen(awake(), torch.float32, "cpu")
    assert all(block.packed[name].gemv for block in large.blocks for name in MATRICES)
    torch.testing.assert_close(large(ids), small(ids), rtol=1e-4, atol=1e-5)
    for block in large.blocks:
        for name in MATRICES:
            block.packed[name].blocks = None
    large.packed_head.blocks = None
    large(ids)  # by nothing else
    with pytest.raises(RuntimeError):
        large(many)
    with pytest.raises(RuntimeError):  # as oneDNN says it, and no reading beyond the numbers there are
        packed.Packed(torch.ones(64, 64), large=True).linear(torch.ones(1, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true", "", "cc '", "cc -Dgemv=another"])
def test_without_a_compiler_there_is_none(compiler, built_anew, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert gemv() is None


def test_nor_without_a_place_to_build_in(built_anew, monkeypatch):
    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: nowhere())
    assert gemv() is None


@pytest.mark.usefixtures("product")
def test_a_compiler_of_cpp_will_do(built_anew, monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    monkeypatch.setenv("CC", "g++")
    assert gemv() is not None


@pytest.mark.usefixtures("product")
def test_one_that_is_wrong_is_not_used(built_anew, monkeypatch, tmp_path: Path):
    header = tmp_path / "wrong.h"
    header.write_text("#include <string.h>\n#define memcpy(to, from, size) memset(to, 0, size)\n")
    monkeypatch.setenv("CC", f"cc -include {header}")
    assert gemv() is None


@pytest.mark.usefixtures("product")
def test_one_that_brings_threads_of_its_own_is_not_used(built_anew, monkeypatch):
    found = [{"libgomp.so.1"}, {"libgomp.so.1", "libomp.so.5"}]
    monkeypatch.setattr("nanochat.model.gemv._openmp_runtimes", lambda: found.pop(0))
    assert gemv() is None
