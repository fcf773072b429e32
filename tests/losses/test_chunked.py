"""How the losses are computed: chunk by chunk, gradients in the forward pass, sums in float32."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from dense_losses import FORMULAS, dense_loss, proper_weights, random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmkit.losses import chunked
from vlmkit.losses.chunked import CHUNK_ROWS
from vlmkit.losses.classification import classification_loss

every_loss = pytest.mark.parametrize("name", FORMULAS)


class FreshGraph(torch.autograd.Function):
    """A loss whose graph is made anew for every backward pass, because gradcheck asks one result several times."""

    @staticmethod
    def forward(ctx, loss, *head):
        ctx.loss = loss
        ctx.save_for_backward(*head)
        return loss(*head)

    @staticmethod
    def backward(ctx, grad):
        head = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            loss = ctx.loss(*head)
        return None, *torch.autograd.grad(loss, head, grad)


@every_loss
def test_gradcheck_with_a_ragged_last_chunk(name, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 3)
    head, ids, weights = random_batch(8, vocab=13)
    weights = proper_weights(name, ids, weights)
    loss = classification_loss(name)
    assert torch.autograd.gradcheck(lambda *p: FreshGraph.apply(lambda *q: loss(*q, ids, weights), *p), head)


@every_loss
def test_no_tensor_holds_the_whole_batchs_logits_or_targets(name):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            tensors = [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]
            self.numel = max([self.numel, *(t.numel() for t in tensors)])
            return result

    rows, vocab = 4 * CHUNK_ROWS, 61
    head, ids, weights = random_batch(rows, vocab)
    weights = proper_weights(name, ids, weights)
    saved = []
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        classification_loss(name)(*head, ids, weights).backward()
    assert largest.numel == CHUNK_ROWS * vocab < rows * vocab
    assert [t.shape for t in saved if t.numel() > 1] == [tensor.shape for tensor in head], "only the gradients are kept"


def test_a_second_backward_pass_is_refused_not_wrong():
    head, ids, weights = random_batch(5)
    loss = classification_loss("bce")(*head, ids, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_loss
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2)])
def test_frozen_inputs_are_left_without_gradient(name, frozen):
    head, ids, weights = random_batch(CHUNK_ROWS + 1)
    weights = proper_weights(name, ids, weights)
    exact = torch.autograd.grad(dense_loss(name, head, ids, weights), head)
    for i in frozen:
        head[i].requires_grad_(False)
    classification_loss(name)(*head, ids, weights).backward()
    for i, (tensor, grad) in enumerate(zip(head, exact, strict=True)):
        if i in frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, grad, rtol=1e-12, atol=1e-11)


@every_loss
def test_no_grad_mode_gives_a_plain_value(name):
    head, ids, weights = random_batch(CHUNK_ROWS + 1)
    weights = proper_weights(name, ids, weights)
    with torch.no_grad():
        loss = classification_loss(name)(*head, ids, weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, dense_loss(name, head, ids, weights), rtol=1e-12, atol=0)


@every_loss
@pytest.mark.parametrize("rows", [40, 2 * CHUNK_ROWS])
def test_autocast_bf16_stays_close_to_float64_with_float32_gradients(name, rows):
    head, ids, weights = random_batch(rows)
    head = [tensor.detach().float().requires_grad_() for tensor in head]
    weights = proper_weights(name, ids, weights).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = classification_loss(name)(*head, ids, weights)
    assert loss.dtype == torch.float32
    grads = torch.autograd.grad(loss, head)
    expected = dense_loss(name, head, ids, weights)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    for grad, exact in zip(grads, torch.autograd.grad(expected, head), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - exact).norm() < 0.015 * exact.norm()


def test_bf16_gradients_of_many_chunks_are_summed_in_float32():
    # Equal rows: each chunk adds the same gradient, so a bf16 running sum would stall once it is 256 times an addend.
    rows = CHUNK_ROWS * 300
    head, ids, weights = random_batch(4, vocab=8, length=4)
    features, weight, bias = (tensor.detach().float() for tensor in head)
    weight.requires_grad_()
    weights = proper_weights("softmax", ids, weights).float()
    with torch.autocast("cpu", torch.bfloat16):
        repeated = (tensor[:1].expand(rows, -1) for tensor in (ids, weights))
        loss = classification_loss("softmax")(features[:1].expand(rows, -1), weight, bias, *repeated)
    (grad,) = torch.autograd.grad(loss, weight)
    one = dense_loss("softmax", [features[:1], weight, bias], ids[:1], weights[:1])
    exact = rows * torch.autograd.grad(one, weight)[0]
    assert (grad - exact).norm() < 0.01 * exact.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@every_loss
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_on_a_gpu_losses_and_gradients_stay_close_to_float64(name, bf16, tolerance):
    head, ids, weights = random_batch(2 * CHUNK_ROWS + 40)
    weights = proper_weights(name, ids, weights)
    expected = dense_loss(name, head, ids, weights)
    mine = [tensor.detach().float().cuda().requires_grad_() for tensor in head]
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        loss = classification_loss(name)(*mine, ids.cuda(), weights.float().cuda())
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=tolerance / 5, atol=0)
    grads = torch.autograd.grad(loss, mine)
    for grad, exact in zip(grads, torch.autograd.grad(expected, head), strict=True):
        assert grad.dtype == torch.float32 and grad.is_cuda
        assert (grad.cpu() - exact).norm() < tolerance * exact.norm()


RANK_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from dense_losses import FORMULAS, dense_loss, proper_weights, random_batch
from vlmkit.losses.classification import classification_loss

class Head(nn.Linear):
    def forward(self, name, features, ids, weights):
        return classification_loss(name)(features, self.weight, self.bias, ids, weights)

rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
(features, weight, bias), ids, weights = random_batch(600)
halves = [(features[r::2].detach(), ids[r::2], weights[r::2]) for r in range(2)]
head = Head(*reversed(weight.shape), dtype=torch.float64)
head.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
fully_shard(head)
for name in FORMULAS:
    head.zero_grad()
    features, ids, weights = halves[rank]
    head(name, features, ids, proper_weights(name, ids, weights)).backward()
    expected = sum(dense_loss(name, [x, weight, bias], i, proper_weights(name, i, w)) for x, i, w in halves) / 2
    for param, grad in zip((head.weight, head.bias), torch.autograd.grad(expected, (weight, bias)), strict=True):
        torch.testing.assert_close(param.grad.full_tensor(), grad, rtol=1e-12, atol=1e-11)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.dist
def test_inside_a_sharded_modules_forward_gradients_are_those_of_the_formula(tmp_path, request):
    command = [sys.executable, "-c", RANK_PROGRAM, str(request.path.parent)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == ["equal", "equal"]
