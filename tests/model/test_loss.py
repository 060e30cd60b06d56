"""The fused loss against the cross-entropy it stands for, however the tokens fall into chunks."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.model.loss import CHUNK_TOKENS, IGNORE, _put, linear_cross_entropy

WIDTH, VOCAB, CAP = 24, 50, 15.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.02}  # of loss and gradients, which come of logits so exact


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS[DEVICE], 2 * CHUNK_TOKENS[DEVICE] + 7])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0], ids="logits of {}".format)
def test_loss_and_gradients_are_those_of_the_formula(tokens: int, spread: float, dtype: torch.dtype) -> None:
    """From nearly flat logits to ones deep in the cap's saturation."""
    generator, tolerance = torch.Generator().manual_seed(0), TOLERANCES[dtype]
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(DEVICE, dtype).requires_grad_()
    head = (torch.randn(VOCAB, WIDTH, generator=generator) * spread / WIDTH**0.5).to(dtype).float()
    head = head.to(DEVICE).requires_grad_()  # fp32, as master weights are, of numbers that `dtype` has too
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    targets[1::3] = IGNORE
    targets = targets.to(DEVICE)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    logits = CAP * torch.tanh(exact[0] @ exact[1].T / CAP)
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    (expected * 0.3).backward()
    loss = linear_cross_entropy(hidden, head, targets, CAP)
    (loss * 0.3).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance / 10)
    for found, reference in zip((hidden, head), exact, strict=True):
        assert (found.grad - reference.grad).norm() <= tolerance * reference.grad.norm()
    assert head.grad.dtype == torch.float32
    assert (hidden.grad[1::3] == 0).all()


def test_nothing_to_learn_is_no_loss_and_no_gradient() -> None:
    hidden, head = torch.randn(5, WIDTH, requires_grad=True), torch.randn(VOCAB, WIDTH, requires_grad=True)
    loss = linear_cross_entropy(hidden, head, torch.full((5,), IGNORE), CAP)
    loss.backward()
    assert loss.item() == 0.0
    assert not hidden.grad.any()
    assert not head.grad.any()


def test_how_deterministic_torch_is_stays_as_it_was() -> None:
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("warn")
        test_nothing_to_learn_is_no_loss_and_no_gradient()
        with pytest.raises(RuntimeError):
            _put(torch.zeros(2, 3), torch.zeros(5, 1, dtype=torch.int64), torch.zeros(4, 1))
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_deterministic_debug_mode(before)
