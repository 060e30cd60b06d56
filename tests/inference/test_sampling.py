import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.inference.sampling import check_sampling, sample


def draw(logits: torch.Tensor, count: int, temperature: float, top_k: int | None = None) -> torch.Tensor:
    """How often each id comes up."""
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    ids = sample(logits.expand(count, -1), uniform, temperature, top_k)
    return torch.bincount(ids, minlength=logits.numel()) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.9, 0.0])
    assert torch.allclose(draw(logits, 100_000, temperature), (logits / temperature).softmax(-1), atol=0.006)


def test_top_k_keeps_the_likeliest_in_proportion():
    logits = torch.tensor([0.3, 2.0, -1.0, 1.9, 0.0])
    expected = logits.masked_fill(torch.tensor([True, False, True, False, True]), -torch.inf).softmax(-1)
    assert torch.allclose(draw(logits, 100_000, 1.0, top_k=2), expected, atol=0.006)
    assert torch.equal(draw(logits, 100, 5.0, top_k=1), draw(logits, 100, 0.0))
    assert draw(torch.zeros(5), 1000, 1.0, top_k=3).count_nonzero() == 3  # ties too
    assert torch.allclose(draw(logits, 100_000, 1.0, top_k=99), logits.softmax(-1), atol=0.006)


@settings(max_examples=200)
@given(
    st.lists(st.floats(-15, 15, width=32, allow_subnormal=False) | st.just(-torch.inf), max_size=30),
    st.floats(-15, 15, width=32, allow_subnormal=False),
    st.floats(0, 1, exclude_max=True, width=32),
    st.sampled_from([0.0, 1e-30, 0.3, 1.0, 100.0]),
    st.sampled_from([None, 1, 3]),
)
def test_never_an_impossible_token(values, last, uniform, temperature, top_k):
    values = [*values, last]
    logits = torch.tensor([values])
    chosen = sample(logits, torch.tensor([uniform]), temperature, top_k).item()
    assert values[chosen] > -torch.inf
    if temperature in (0.0, 1e-30):
        assert values[chosen] == max(values)


def test_a_row_depends_on_itself_only():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(2))
    together = sample(logits, uniform, 0.9, 7)
    assert together.tolist() == [sample(logits[i : i + 1], uniform[i : i + 1], 0.9, 7).item() for i in range(6)]


@pytest.mark.parametrize(("temperature", "top_k"), [(-0.1, None), (float("nan"), None), (1.0, 0)])
def test_meaningless_settings(temperature, top_k):
    with pytest.raises(ValueError, match="must be at least"):
        check_sampling(temperature, top_k)
