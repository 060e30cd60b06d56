"""Products in 8 bits beside exact ones."""

import pytest
import torch

from nanochat.model import ModelConfig, Transformer
from nanochat.model.fp8 import fp8_linear, fp8_unavailable

DEVICE = torch.device("cpu" if fp8_unavailable(torch.device("cuda")) else "cuda")
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
scales_rows = pytest.mark.skipif(DEVICE.type == "cpu" and VERSION < (2, 13), reason="no scales of rows on a CPU")


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


@scales_rows
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_a_product_and_its_gradients_are_as_exact_as_eight_bits_allow(scale):
    """e4m3 keeps three bits of a fraction: rounding errors of 1/16 at most, averaged over a sum. Weights' gradients are
    products in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(2, 32, 64, generator=generator)).to(DEVICE, torch.bfloat16).requires_grad_()
    weight = torch.randn(48, 64, generator=generator).to(DEVICE, torch.bfloat16).requires_grad_()
    upstream = torch.randn(2, 32, 48, generator=generator).to(DEVICE, torch.bfloat16)
    exact = [part.detach().double().requires_grad_() for part in (x, weight)]
    found, expected = fp8_linear(x, weight), exact[0] @ exact[1].T
    assert (found.shape, found.dtype) == (expected.shape, torch.bfloat16)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert 1e-3 < relative_error(found, expected.detach()) < 0.06
    assert 1e-3 < relative_error(x.grad, exact[0].grad) < 0.06
    assert relative_error(weight.grad, exact[1].grad) < 0.005


@scales_rows
def test_a_row_is_as_exact_beside_one_a_million_times_as_large():
    x, weight = (torch.randn(16, 32, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x[0] *= 1e6
    exact = x.double() @ weight.double().T
    assert relative_error(fp8_linear(x, weight)[1:], exact[1:]) < 0.06


def test_nothing_comes_of_nothing():
    zeros = torch.zeros(16, 32, dtype=torch.bfloat16, device=DEVICE)
    assert not fp8_linear(zeros, zeros).any()


@scales_rows
def test_a_model_learns_in_fp8_and_is_evaluated_without():
    config = ModelConfig.from_depth(2, 256, 32)
    model, plain = (
        Transformer(config, compute_dtype=torch.bfloat16, fp8=fp8).to(DEVICE) for fp8 in (True, False)
    )
    ids = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    targets = ids.roll(-1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        loss = model.loss_sum(ids, targets) / ids.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    assert not torch.equal(model(ids), plain(ids))


def test_where_there_is_no_such_gpu_it_is_said():
    assert "GPU" in (fp8_unavailable(torch.device("cpu")) or "")
