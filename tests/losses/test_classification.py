"""The classification losses against their formulas, in values and gradients, whatever the captions are like."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from dense_losses import FORMULAS, dense_loss, proper_weights, random_batch

from vlmkit.errors import UserError
from vlmkit.losses import chunked
from vlmkit.losses.chunked import CHUNK_ROWS
from vlmkit.losses.classification import classification_loss
from vlmkit.losses.two_way import ClassSums, two_way_loss

every_loss = pytest.mark.parametrize("name", FORMULAS)


def assert_equals_formula(name, head, ids, weights):
    weights = proper_weights(name, ids, weights)
    loss, expected = classification_loss(name)(*head, ids, weights), dense_loss(name, head, ids, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(3 * loss, head)
    for grad, exact in zip(grads, torch.autograd.grad(3 * expected, head), strict=True):
        torch.testing.assert_close(grad, exact, rtol=1e-12, atol=1e-12 * (1 + float(exact.abs().max())))


@every_loss
@pytest.mark.parametrize("rows", [1, 40, CHUNK_ROWS, CHUNK_ROWS + 90])
def test_loss_and_gradients_equal_the_formula(name, rows):
    assert_equals_formula(name, *random_batch(rows))


def unlabelled_rows(ids, weights, g):
    return ids.masked_fill(torch.rand(len(ids), 1, generator=g) < 0.5, -1), weights


def no_labels(ids, weights, g):
    return torch.full_like(ids, -1), weights


def no_room_for_labels(ids, weights, g):
    return ids[:, :0], weights[:, :0]


def all_common_captions(ids, weights, g):
    """The same caption everywhere, whose tokens' inverse document frequency is zero."""
    return ids[:1].expand(ids.shape), torch.zeros_like(weights)


def same_captions(ids, weights, g):
    return ids[:1].expand(ids.shape), weights


def weightless_labels(ids, weights, g):
    return ids, weights * (torch.rand(weights.shape, generator=g) < 0.4)


def negative_weights(ids, weights, g):
    """The paper's printed formula gives a token of every caption a weight just below zero."""
    return ids, weights - 0.2


def loud_padding(ids, weights, g):
    return ids, torch.where(ids < 0, 1e6, weights)


def weightless_copies(ids, weights, g):
    """Some labels once more, with no weight of their own."""
    return torch.cat([ids, ids[:, :3]], 1), torch.cat([weights, torch.zeros_like(weights[:, :3])], 1)


def plain_weights(ids, weights, g):
    return ids, torch.ones_like(weights)


KINDS = [
    unlabelled_rows,
    no_labels,
    no_room_for_labels,
    all_common_captions,
    same_captions,
    weightless_labels,
    negative_weights,
    loud_padding,
    weightless_copies,
    plain_weights,
]


@every_loss
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_any_captions_any_number_of_chunks(name, kind, seed, monkeypatch):
    g = torch.Generator().manual_seed(seed)
    rows, chunk, vocab = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 30), (1, 12), (2, 40)))
    head, ids, weights = random_batch(rows, vocab, length=min(vocab, 9), seed=seed)
    monkeypatch.setattr(chunked, "CHUNK_ROWS", chunk)
    assert_equals_formula(name, head, *kind(ids, weights, g))


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "two_way"])
def test_a_repeated_label_weighs_what_its_copies_weigh_together(name):
    head, ids, weights = random_batch(20)
    assert_equals_formula(name, head, torch.cat([ids, ids], 1), torch.cat([weights, 2 * weights], 1))


@every_loss
def test_every_class_may_be_a_label(name):
    head, ids, weights = random_batch(12, vocab=5, length=5)
    ids[::2] = torch.arange(5)
    assert_equals_formula(name, head, ids, weights)
    assert_equals_formula(name, head, torch.arange(5).expand(12, 5), weights)
    assert_equals_formula(name, head, torch.arange(5).expand(12, 5), torch.zeros_like(weights))


@every_loss
def test_confident_logits(name):
    head, ids, weights = random_batch(30)
    with torch.no_grad():
        head[1] *= 12
        assert float((head[0] @ head[1].T).abs().max()) > 60
    assert_equals_formula(name, head, ids, weights)


@every_loss
def test_far_out_logits_stay_finite(name):
    head, ids, weights = random_batch(20)
    head = [(tensor.float() * scale).detach().requires_grad_() for tensor, scale in zip(head, (1, 1e4, 1), strict=True)]
    loss = classification_loss(name)(*head, ids, proper_weights(name, ids, weights))
    loss.backward()
    assert loss.isfinite() and all(tensor.grad.isfinite().all() for tensor in head)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("bce", lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="sum")),
        ("soft_margin", lambda x, y: F.multilabel_soft_margin_loss(x, y, reduction="sum")),
    ],
)
def test_unweighted_losses_are_torchs_own(name, peer):
    (features, weight, bias), ids, weights = random_batch(40)
    multi_hot = torch.zeros(40, 38, dtype=torch.float64).scatter_(1, ids.where(ids >= 0, 37), 1)[:, :37]
    loss = classification_loss(name)(features, weight, bias, ids, torch.ones_like(weights))
    torch.testing.assert_close(loss, peer(features @ weight.T + bias, multi_hot), rtol=1e-12, atol=0)


@every_loss
def test_parts_of_a_batch_add_up_to_the_whole(name):
    """Of the two-way loss, if the sums of the classes are known ahead."""
    head, ids, weights = random_batch(50)
    loss, weights = classification_loss(name), proper_weights(name, ids, weights)
    parts = [(head[0][s], *head[1:], ids[s], weights[s]) for s in (slice(0, 20), slice(20, 50))]
    if name == "two_way":
        classes = ClassSums()
        for part in parts:
            classes.add(*part)
        of_part = partial(two_way_loss, classes=classes)
    else:
        of_part = loss
    total, whole = sum(of_part(*part) for part in parts), loss(*head, ids, weights)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    for mine, exact in zip(torch.autograd.grad(total, head), torch.autograd.grad(whole, head), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["softmax", "two_way"])
def test_captions_without_labels_cost_exactly_nothing(name):
    head, ids, weights = random_batch(30)
    loss = classification_loss(name)(*head, torch.full_like(ids, -1), proper_weights(name, ids, weights * 0))
    assert loss.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss, head))


def test_an_unknown_loss_names_the_choices():
    with pytest.raises(UserError, match=r"'hinge'.*softmax, bce, asl, soft_margin, two_way"):
        classification_loss("hinge")
