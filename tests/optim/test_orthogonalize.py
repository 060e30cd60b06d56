"""The approximate polar factor against the exact one."""

import pytest
import torch

from nanochat.optim.orthogonalize import POLAR_EXPRESS, orthogonalize

SHAPES = [(16, 16), (64, 16), (16, 64), (40, 32), (256, 256), (1024, 256), (256, 1024)]


def with_singular_values(shape: tuple[int, int], values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with these singular values, and its polar factor."""
    rows, columns = max(shape), min(shape)
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64)).Q
    matrix, polar = (left * values.double()) @ right.T, left @ right.T
    return (matrix, polar) if shape[0] >= shape[1] else (matrix.T, polar.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_come_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix, polar = with_singular_values(shape, torch.logspace(0, -2, min(shape)))
    out = orthogonalize(matrix[None].to(dtype))[0]
    assert out.dtype == dtype
    values = torch.linalg.svdvals(out.double())
    assert values.min() > 0.8
    assert values.max() < 1.2
    assert (out.double() - polar).norm() / polar.norm() < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hopeless_matrices_stay_finite_and_small(dtype: torch.dtype) -> None:
    """Zero, rank one, and values far beyond any gradient's."""
    one = torch.ones(1, 64, 16, dtype=dtype)
    for matrix in (torch.zeros_like(one), one, one * 1e-12, one * 1e12):
        out = orthogonalize(matrix)
        assert out.isfinite().all()
        assert torch.linalg.svdvals(out.double()).max() < 1.3


def test_matrices_of_a_batch_do_not_mix() -> None:
    batch = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalize(matrix[None] * scale) for matrix, scale in zip(batch, (1, 10, 0.1), strict=True)])
    torch.testing.assert_close(orthogonalize(batch), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (48, 40)], ids=str)
def test_the_gram_form_applies_the_same_polynomials(shape: tuple[int, int]) -> None:
    """In fp32, matrices that are not square take it; against the polynomials of the singular values themselves."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix.double() / (matrix.double().norm() * 1.02), full_matrices=False)
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalize(matrix[None])[0].double(), left * values @ right, rtol=1e-4, atol=1e-5)
