import pytest
import torch

from vlmkit.losses.bag_of_tokens import FUSED_FROM, _ChunkedLoss, bag_of_tokens_loss
from vlmkit.losses.token_frequency import normalise_rows

VOCAB, WIDTH = 37, 6


def problem(rows, dtype=torch.float64, seed=0):
    """Random inputs with pads, short rows, an unlabelled row and a row whose labels weigh nothing."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:9] for _ in range(rows)])
    ids = ids.masked_fill(torch.arange(9) >= torch.randint(1, 10, (rows, 1), generator=g), -1)
    ids[1] = -1
    weights = normalise_rows(torch.rand(ids.shape, generator=g, dtype=dtype) * (ids >= 0))
    weights[2] = 0
    features = torch.randn(rows, WIDTH, generator=g, dtype=dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=g, dtype=dtype)
    bias = torch.randn(VOCAB, generator=g, dtype=dtype)
    return [t.requires_grad_() for t in (features, weight, bias)], ids, weights


def dense(features, weight, bias, ids, weights):
    """Eq. 1 as printed: -sum_c y_c log softmax(x)_c over the whole vocabulary."""
    targets = torch.zeros(len(ids), VOCAB, dtype=torch.float64)
    for row, (tokens, values) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
        for token, value in zip(tokens, values, strict=True):
            if token >= 0:
                targets[row, token] = value
    logits = features.double() @ weight.double().T + bias.double()
    return -(targets * logits.log_softmax(1)).sum()


@pytest.mark.parametrize("rows", [40, FUSED_FROM + 90])
def test_loss_and_gradients_equal_the_dense_formula(rows):
    params, ids, weights = problem(rows)
    loss, expected = bag_of_tokens_loss(*params, ids, weights), dense(*params, ids, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    grads = torch.autograd.grad(3 * loss, params)
    for grad, exact in zip(grads, torch.autograd.grad(3 * expected, params), strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-12, atol=1e-13)


def test_chunked_form_passes_gradcheck_with_a_ragged_last_chunk():
    params, ids, weights = problem(8)
    assert torch.autograd.gradcheck(
        lambda *p: _ChunkedLoss.apply(*p, ids.clamp(min=0), weights * (ids >= 0), 3), params, fast_mode=False
    )


def test_rows_without_labels_cost_nothing_and_pads_are_ignored():
    params, ids, weights = problem(FUSED_FROM)
    alone = bag_of_tokens_loss(params[0][1:3], *params[1:], ids[1:3], weights[1:3])
    assert alone.item() == 0
    loud_pads = torch.where(ids < 0, 5.0, weights)
    torch.testing.assert_close(
        bag_of_tokens_loss(*params, ids, loud_pads), bag_of_tokens_loss(*params, ids, weights), rtol=0, atol=0
    )
    (grad,) = torch.autograd.grad(bag_of_tokens_loss(*params, ids, weights), params[0])
    assert grad[1:3].abs().max() == 0 and grad[0].abs().max() > 0


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_fused_form_leaves_frozen_inputs_without_gradient(frozen):
    params, ids, weights = problem(FUSED_FROM)
    params[frozen].requires_grad_(False)
    bag_of_tokens_loss(*params, ids, weights).backward()
    reference = [p.detach().clone().requires_grad_() for p in params]
    dense(*reference, ids, weights).backward()
    for i, (param, exact) in enumerate(zip(params, reference, strict=True)):
        if i == frozen:
            assert param.grad is None
        else:
            torch.testing.assert_close(param.grad, exact.grad, rtol=1e-12, atol=1e-13)


def test_no_grad_mode_gives_a_plain_value():
    params, ids, weights = problem(FUSED_FROM)
    with torch.no_grad():
        loss = bag_of_tokens_loss(*params, ids, weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, dense(*params, ids, weights), rtol=1e-13, atol=0)


@pytest.mark.parametrize("rows", [40, 2 * FUSED_FROM])
def test_autocast_bf16_stays_close_to_float64_with_float32_gradients(rows):
    params, ids, weights = problem(rows, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = bag_of_tokens_loss(*params, ids, weights)
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, params)
    exact_loss = dense(*params, ids, weights)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-3, atol=0)
    for grad, exact in zip(grads, torch.autograd.grad(exact_loss, params), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - exact).norm() < 0.01 * exact.norm()


def test_bf16_gradients_of_many_chunks_are_summed_in_float32():
    # Equal rows: each chunk adds the same gradient, so a bf16 running sum would stall once it is 256 times an addend.
    rows = 256 * 300
    params, ids, weights = problem(4, dtype=torch.float32)
    features = params[0][:1].detach().expand(rows, -1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = bag_of_tokens_loss(features, *params[1:], ids[:1].expand(rows, -1), weights[:1].expand(rows, -1))
    grad_weight, _ = torch.autograd.grad(loss, params[1:])
    one = dense(features[:1], *params[1:], ids[:1], weights[:1])
    exact = rows * torch.autograd.grad(one, params[1])[0]
    assert (grad_weight - exact).norm() < 0.01 * exact.norm()
