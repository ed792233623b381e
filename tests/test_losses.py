"""The cross-entropy against a NumPy reference and mmseg's own."""

import numpy as np
import pytest
import torch
from mmseg.models.losses import CrossEntropyLoss, FocalLoss

from mmseg_unet_lyft.models.losses import LyftCrossEntropyLoss, apply_loss

WEIGHTS = [0.5, 2.0, 3.0]


@pytest.fixture
def batch():
    """Logits of three classes and labels with ignored pixels."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=random, requires_grad=True)
    label = torch.randint(0, 3, (2, 4, 5), generator=random)
    label[0, :2] = 255
    return logits, label


def by_hand(logits, label, weights):
    """Weighted mean of minus log of the softmax, pixel by pixel."""
    scores = logits.detach().double().numpy()
    total = norm = 0.0
    for n, row, column in np.argwhere(label.numpy() != 255):
        true = int(label[n, row, column])
        pixel = scores[n, :, row, column]
        total -= weights[true] * (pixel[true] - np.log(np.exp(pixel).sum()))
        norm += weights[true]
    return total / norm


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_mean_is_over_valid_pixels_by_their_class_weight(batch, weights):
    logits, label = batch
    expected = by_hand(logits, label, weights or [1.0] * 3)
    # As samples hold them, labels have a dimension more.
    for given in (label, label[:, None]):
        loss = LyftCrossEntropyLoss(class_weight=weights)(logits, given)
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('weighted', [False, True])
def test_the_focal_loss_of_class_ids_by_its_formula(batch, channels, weighted):
    logits, label = batch[0][:, :channels], batch[1]
    label = label.where(label == 255, label.clamp(max=max(channels - 1, 1)))
    pixel_weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) if weighted else None
    loss = apply_loss(FocalLoss(gamma=2.0, alpha=0.25, loss_weight=3.0), logits, label, pixel_weight, 255)
    total = 0.0
    for n, row, column in np.argwhere(label.numpy() != 255):
        for channel, x in enumerate(logits[n, :, row, column].tolist()):
            is_class = int(label[n, row, column]) == (1 if channels == 1 else channel)
            p = 1 / (1 + np.exp(-x if is_class else x))
            share = (0.25 if is_class else 0.75) * (pixel_weight[n, row, column].item() if weighted else 1)
            total -= share * (1 - p) ** 2 * np.log(p)
    assert loss.item() == pytest.approx(3 * total / logits.numel(), rel=1e-5)


@pytest.mark.parametrize('channels', [1, 3])
def test_sigmoids_are_averaged_over_valid_pixels_as_mmseg_does(batch, channels):
    logits, label = batch
    label = label.where(label == 255, label.clamp(max=max(channels - 1, 1)))
    theirs = CrossEntropyLoss(use_sigmoid=True, avg_non_ignore=True)
    expected = theirs(logits[:, :channels], label, ignore_index=255)
    torch.testing.assert_close(LyftCrossEntropyLoss(use_sigmoid=True)(logits[:, :channels], label), expected)


def test_deterministic_algorithms_get_rows_and_give_the_same_loss_and_gradient(batch):
    logits, label = batch
    pixel_weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1))
    loss = LyftCrossEntropyLoss(class_weight=WEIGHTS)
    plain = loss(logits, label, pixel_weight)
    (wanted,) = torch.autograd.grad(plain, logits)
    shapes, criterion = [], loss.cls_criterion
    loss.cls_criterion = lambda pred, *args, **kwargs: (
        shapes.append(tuple(pred.shape)) or criterion(pred, *args, **kwargs)
    )
    torch.use_deterministic_algorithms(True)
    try:
        repeated = loss(logits, label, pixel_weight)
        (gradient,) = torch.autograd.grad(repeated, logits)
    finally:
        torch.use_deterministic_algorithms(False)
    # CUDA has no deterministic cross-entropy of label maps (N, C, H, W).
    assert shapes == [(40, 3)]
    torch.testing.assert_close(repeated, plain)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize('reduction', ['none', 'sum'])
def test_other_reductions_are_mmsegs(batch, reduction):
    logits, label = batch
    ours = LyftCrossEntropyLoss(class_weight=WEIGHTS, reduction=reduction)(logits, label)
    theirs = CrossEntropyLoss(class_weight=WEIGHTS, reduction=reduction)(logits, label, ignore_index=255)
    torch.testing.assert_close(ours, theirs)


def test_a_batch_without_valid_pixels_costs_nothing():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = LyftCrossEntropyLoss(class_weight=WEIGHTS)(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
