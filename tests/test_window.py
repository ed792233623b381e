"""Windows over a frame: their weights against nnU-Net's, their places, their weighted mean by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from mmseg_unet_lyft.models.window import gaussian_weights, slide, window_starts


def nnunet_weights(size: tuple[int, int], sigma_scale: float) -> np.ndarray:
    """What nnU-Net's compute_gaussian does, step by step."""
    weights = np.zeros(size)
    weights[tuple(side // 2 for side in size)] = 1
    weights = gaussian_filter(weights, [side * sigma_scale for side in size], mode='constant')
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


@pytest.mark.parametrize('size', [(16, 24), (17, 33), (288, 384), (1, 5)])
def test_weights_are_nnunets(size):
    weights = gaussian_weights(size)
    assert weights.dtype == torch.float32
    assert weights[size[0] // 2, size[1] // 2] == 1
    np.testing.assert_allclose(weights.numpy(), nnunet_weights(size, 1 / 8), rtol=1e-5)


def test_weights_that_round_to_zero_get_the_smallest_positive_one():
    weights = gaussian_weights((65, 65), sigma_scale=1 / 128)
    distance = np.hypot(*np.mgrid[-32:33, -32:33])
    exact = np.exp(-0.5 * (distance / (65 / 128)) ** 2).astype(np.float32)
    assert (exact == 0).any()
    assert weights.min() > 0
    np.testing.assert_allclose(weights.numpy()[exact == 0], exact[exact > 0].min(), rtol=1e-3)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'starts'),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (10, 4, 4, [0, 4, 6]),
        (4, 4, 1, [0]),
        (3, 4, 2, [0]),
        (1, 4, 4, [0]),
    ],
)
def test_windows_stand_a_stride_apart_and_the_last_ends_with_the_side(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_two_overlapping_windows_by_hand():
    # A row of 6 under windows of 4, 2 apart: 0-3 answers 10, 2-5 answers 20.
    answers = iter([10.0, 20.0])
    result = slide(
        lambda view: torch.full_like(view[:, :1], next(answers)), torch.zeros(1, 3, 1, 6), (1, 4), (1, 2)
    )
    # Weights of 4 pixels, middle 2, sigma 1/2: exp(-8), exp(-2), 1, exp(-2).
    w = np.exp([-8.0, -2.0, 0.0, -2.0])
    third = (10 * w[2] + 20 * w[0]) / (w[2] + w[0])
    fourth = (10 * w[3] + 20 * w[1]) / (w[3] + w[1])
    np.testing.assert_allclose(result[0, 0, 0].numpy(), [10, 10, third, fourth, 20, 20], rtol=1e-6)
    assert third == pytest.approx(10.00335, abs=1e-5)
    assert fourth == 15


@pytest.mark.parametrize('size', [(9, 14), (5, 14), (5, 5), (20, 3)])
def test_a_network_of_single_pixels_gives_what_it_gives_whole_whatever_the_frames_size(size):
    frame = torch.rand(2, 3, *size)
    seen = []

    def network(view: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(view.shape[2:]))
        return torch.stack([view.sum(1), view.prod(1)], dim=1)

    result = slide(network, frame, (8, 6), (3, 4))
    expected = torch.stack([frame.sum(1), frame.prod(1)], dim=1)
    torch.testing.assert_close(result, expected)
    # Every window is the whole window, or as much as the frame has.
    assert set(seen) == {(min(8, size[0]), min(6, size[1]))}
