"""From logits to predictions: probabilities, labels, test-time augmentation, Monte-Carlo dropout.

Shape legend: N batch, C classes, H x W the input's size. A single logit (a sigmoid head) stands for two
classes.
"""

import copy
from collections import deque
from collections.abc import Callable, Sequence

import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..errors import InputError

# All but the first drop whole channels.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def at_size(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Maps (N, C, h, w) resized to (height, width), bilinear; the same tensor if they have that size."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return resize(maps, size=tuple(size), mode='bilinear', align_corners=align_corners)


def to_probabilities(logits: Tensor) -> Tensor:
    """Softmax of logits (N, C, H, W), float32; of a single channel both classes' sigmoids, (N, 2, H, W)."""
    logits = logits.float()
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    # Not 1 - p: for a probability near 1 it rounds to 0.
    return torch.cat([-logits, logits], dim=1).sigmoid()


def to_labels(
    logits: Tensor, threshold: float | None = None, class_thresholds: Sequence[float] | None = None
) -> Tensor:
    """Class ids, uint8 (N, H, W), of logits (N, C, H, W).

    A single channel is of class 1 above the probability ``threshold``. Of several, the label is the class
    with the largest p_c / t_c, where ``class_thresholds`` are t_c > 0, or with the largest p_c.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0].sigmoid() > threshold).to(torch.uint8)
    if class_thresholds is not None:
        logits = logits - logits.new_tensor(class_thresholds).log()[:, None, None]
    # `max` finds the same index as `argmax`, four times as fast on a CPU.
    return logits.max(1).indices.to(torch.uint8)


def to_logits(probabilities: Tensor, out_channels: int) -> Tensor:
    """Logits, float32 (N, out_channels, H, W), whose softmax (or sigmoid) gives these probabilities.

    Inverts `to_probabilities`. All are finite: a probability of 0 becomes a logarithm of -87.
    """
    logarithms = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log_()
    return logarithms if out_channels > 1 else logarithms[:, 1:] - logarithms[:, :1]


def average_views(
    network: Callable[[Tensor], Tensor], inputs: Tensor, scales: Sequence[float], flip: bool
) -> Tensor:
    """Test-time augmentation: mean probabilities over scales of an input, each also mirrored with ``flip``.

    ``network`` maps images (N, 3, H, W) of any size to logits (N, C, H, W); ``scales`` are factors > 0 on
    height and width. Returns float32 (N, C, H, W), or (N, 2, H, W) for a single logit.
    """
    size = inputs.shape[2:]
    total = None
    for scale in scales:
        scaled_size = [max(1, round(side * scale)) for side in size]
        # Resized as in training: bilinear, without an anti-aliasing filter.
        view = at_size(inputs, scaled_size)
        for mirrored in (False, True) if flip else (False,):
            logits = network(view.flip(3)).flip(3) if mirrored else network(view)
            probabilities = to_probabilities(at_size(logits, size))
            total = probabilities if total is None else total.add_(probabilities)
    return total.div_(len(scales) * (2 if flip else 1))


class _SeededDropout(nn.Module):
    """Dropout of elements or of whole channels that stays active in evaluation mode.

    Random numbers come from its own generator, since all threads share torch's.
    """

    def __init__(self, ratio: float, by_channel: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.ratio, self.by_channel, self.generator = ratio, by_channel, generator

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs (N, C, ...), some elements 0 and the others scaled up to keep the mean."""
        kept = 1 - self.ratio
        if not kept:
            return torch.zeros_like(inputs)
        shape = (*inputs.shape[:2], *[1] * (inputs.ndim - 2)) if self.by_channel else inputs.shape
        # `empty`, not `empty_like`: the mask must not depend on the inputs' memory format.
        mask = torch.empty(shape, dtype=inputs.dtype, device=inputs.device)
        # Same as bernoulli_, in half the time.
        return inputs * mask.uniform_(generator=self.generator).lt_(kept).div_(kept)


def active_dropouts(network: nn.Module) -> list[str]:
    """Names of the network's dropout layers with a ratio above 0."""
    layers = network.named_modules(remove_duplicate=False)
    return [name for name, layer in layers if isinstance(layer, _DROPOUTS) and layer.p > 0]


def check_dropout(network: nn.Module) -> None:
    """Raise an InputError if no dropout layer of the network can be active."""
    if not active_dropouts(network):
        raise InputError(
            'Monte-Carlo dropout: this network has no dropout layer with a ratio above 0, so every pass '
            'gives the same; train it with encoder_dropout or decoder_dropout above 0, or take one pass '
            '(--uncertainty 1), the plain softmax'
        )


@torch.no_grad()
def monte_carlo(
    model: EncoderDecoder, inputs: Tensor, metas: list[dict], passes: int = 10, seed: int = 0
) -> Tensor:
    """Mean probabilities over passes with only dropout active; batch norm uses its running statistics.

    Neither the model nor torch's global random state changes, so other threads may use both at the same
    time. The same seed gives the same result for the same batch.

    Args:
        model: A segmentor; each pass calls its ``inference``, with test-time augmentation and windows.
        inputs: Normalised images, float (N, 3, H, W).
        metas: Meta information of each image.
        passes: Number of passes, 1 or more (T).
        seed: Decides which elements are dropped.

    Returns:
        Float32 (N, C, H, W); (N, 2, H, W) for a single logit.

    Raises:
        InputError: If no dropout layer has a ratio above 0.
    """
    check_dropout(model)
    # A copy in evaluation mode that shares all parameters and buffers.
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared}).eval()
    generator = torch.Generator(shared[0].device).manual_seed(seed)
    for name in active_dropouts(twin):
        layer = twin.get_submodule(name)
        by_channel = not isinstance(layer, nn.Dropout)
        twin.set_submodule(name, _SeededDropout(layer.p, by_channel, generator))
    total, compute, remembered = None, twin.backbone.forward, deque()

    def forward(inputs: Tensor) -> tuple[Tensor, ...]:
        # Each pass asks for the maps of the same views and windows, in the same order.
        remembered.append(compute(inputs) if total is None else remembered.popleft())
        return remembered[-1]

    if not any(isinstance(layer, _SeededDropout) for layer in twin.backbone.modules()):
        twin.backbone.forward = forward
    for _ in range(passes):
        # mmseg's sliding window writes into the metas.
        probabilities = to_probabilities(twin.inference(inputs, [dict(meta) for meta in metas]))
        total = probabilities if total is None else total.add_(probabilities)
    # The copy refers to itself, and so lives until the next garbage collection.
    remembered.clear()
    return total.div_(passes)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel's distribution over C classes, in nats, from 0 to ln C.

    Float (N, H, W) from probabilities (N, C, H, W).
    """
    # entr is -p ln p, 0 at 0. A probability that rounding puts above 1 gives a negative entropy.
    return torch.special.entr(probabilities).sum(dim=1).clamp_(min=0)
