"""The fused loss against the cross-entropy it stands for, however the tokens fall into chunks."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.loss import CHUNK_TOKENS, IGNORE, linear_cross_entropy

WIDTH, VOCAB, CAP = 24, 50, 15.0


@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS["cpu"], 2 * CHUNK_TOKENS["cpu"] + 7])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0], ids="logits of {}".format)
def test_loss_and_gradients_are_those_of_the_formula(tokens: int, spread: float) -> None:
    """From nearly flat logits to ones deep in the cap's saturation."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_()
    head = (torch.randn(VOCAB, WIDTH, generator=generator) * spread / WIDTH**0.5).requires_grad_()
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    targets[1::3] = IGNORE
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    logits = CAP * torch.tanh(exact[0] @ exact[1].T / CAP)
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    (expected * 0.3).backward()
    loss = linear_cross_entropy(hidden, head, targets, CAP)
    (loss * 0.3).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for found, reference in zip((hidden, head), exact, strict=True):
        assert (found.grad - reference.grad).norm() <= 1e-5 * reference.grad.norm()
    assert (hidden.grad[1::3] == 0).all()


def test_nothing_to_learn_is_no_loss_and_no_gradient() -> None:
    hidden, head = torch.randn(5, WIDTH, requires_grad=True), torch.randn(VOCAB, WIDTH, requires_grad=True)
    loss = linear_cross_entropy(hidden, head, torch.full((5,), IGNORE), CAP)
    loss.backward()
    assert loss.item() == 0.0
    assert not hidden.grad.any()
    assert not head.grad.any()
