"""Rows of tables for token ids, and the sums of their gradients by token."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nanochat.model.lookup import _sum_by_token, lookup, sort_for_gradients
from nanochat.model.sorted_ids import PART, Sorted


@given(st.data(), st.integers(1, 40))
def test_the_parts_of_all_tokens_are_all_places_of_each_once(data, vocab_size):
    """Read as the kernel reads them: each part the places of one token, the parts of a token one after the other."""
    ids = torch.tensor(data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=100)))
    order, begins, parts, owners = Sorted.of(ids, vocab_size)
    found = []
    for part, token in enumerate(owners.tolist()):
        if token == vocab_size:  # there could be as many parts, there are fewer
            continue
        first = int(parts[token - 1]) if token else 0
        begin = int(begins[token]) + (part - first) * PART
        places = order[begin : min(begin + PART, int(begins[token + 1]))].tolist()
        assert places, "no part is empty"
        assert (ids[places] == token).all()
        assert places == sorted(places)
        found += places
    assert sorted(found) == list(range(len(ids)))
    assert int(parts[-1]) <= len(owners)


def test_on_a_cpu_nothing_is_sorted_and_rows_are_pytorchs():
    ids, table = torch.randint(9, (2, 30)), torch.randn(9, 6, requires_grad=True)
    assert sort_for_gradients(ids, 9) is None
    assert torch.equal(lookup(ids, table, torch.bfloat16, None), F.embedding(ids, table))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it can be built")
def test_where_the_kernel_cannot_be_built_there_is_none():
    """And PyTorch's own way is taken: this was an error in the first backward pass."""
    assert _sum_by_token() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [64, 200, 1100])
@pytest.mark.parametrize("frequent", [0, 3000], ids="{} of one token".format)
def test_on_a_gpu_rows_and_gradients_are_pytorchs(width, frequent):
    ids = torch.randint(300, (4, 1000), device="cuda")
    ids.view(-1)[:frequent] = 299
    table = torch.randn(300, width, device="cuda", requires_grad=True)
    upstream = torch.randn(4, 1000, width, device="cuda", dtype=torch.bfloat16)
    by_token = sort_for_gradients(ids, 300)
    found, plain = lookup(ids, table, torch.bfloat16, by_token), F.embedding(ids, table).to(torch.bfloat16)
    assert torch.equal(found, plain)
    (gradient,), (again,), (expected,) = (
        torch.autograd.grad(rows, table, upstream, retain_graph=True) for rows in (found, found, plain)
    )
    assert torch.equal(gradient, again)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-4)
