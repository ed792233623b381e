"""Monte-Carlo dropout: what a network answers when its dropout stays active, and how unsure that is.

Source: Gal and Ghahramani, Dropout as a Bayesian Approximation, 2016, https://arxiv.org/abs/1506.02142.
"""

from __future__ import annotations

import copy

import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ..errors import InputError
from .averaging import to_probabilities

# Of these, all but the first drop whole channels.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class _SeededDropout(nn.Module):
    """Dropout whose random numbers come from a generator of its own, whatever the module's mode.

    torch's own takes them from the generator that all threads share.

    Args:
        ratio: Share of elements, or of channels, that become 0.
        by_channel: Whether whole channels are dropped.
        generator: The source, on the device of the inputs.
    """

    def __init__(self, ratio: float, by_channel: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.ratio = ratio
        self.by_channel = by_channel
        self.generator = generator

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs (N, C, ...) with elements at 0, the others scaled up so that the mean stays."""
        kept = 1 - self.ratio
        if not kept:
            return torch.zeros_like(inputs)
        shape = (*inputs.shape[:2], *[1] * (inputs.ndim - 2)) if self.by_channel else inputs.shape
        # Drawn in one order of the pixels, so that the memory format changes nothing.
        mask = torch.empty(shape, dtype=inputs.dtype, device=inputs.device)
        # As bernoulli_, in half its time.
        return inputs * mask.uniform_(generator=self.generator).lt_(kept).div_(kept)


class _Remembered(nn.Module):
    """A network without randomness, asked the same in every pass: it answers from the first one.

    Args:
        network: What it stands for.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.answers: list[tuple[Tensor, ...]] = []
        self.place = 0

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The maps of this pass's next inputs."""
        if self.place == len(self.answers):
            self.answers.append(self.network(inputs))
        self.place += 1
        return self.answers[self.place - 1]


def active_dropouts(network: nn.Module) -> list[str]:
    """Names of the network's dropout layers with a ratio above 0."""
    layers = network.named_modules(remove_duplicate=False)
    return [name for name, layer in layers if isinstance(layer, _DROPOUTS) and layer.p > 0]


def check_dropout(network: nn.Module) -> None:
    """Raise an InputError if no dropout layer of the network can be active."""
    if not active_dropouts(network):
        raise InputError(
            'Monte-Carlo dropout: this network has no dropout layer with a ratio above 0, so that every pass '
            'gives the same; train it with the knobs encoder_dropout or decoder_dropout above 0, or take one '
            'pass (--uncertainty 1), the plain softmax'
        )


def _with_dropout(network: EncoderDecoder, seed: int) -> EncoderDecoder:
    """A copy in evaluation mode with active dropout; it shares all parameters and buffers."""
    shared = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in shared}).eval()
    generator = torch.Generator(shared[0].device).manual_seed(seed)
    for name in active_dropouts(twin):
        layer = twin.get_submodule(name)
        by_channel = not isinstance(layer, nn.Dropout)
        twin.set_submodule(name, _SeededDropout(layer.p, by_channel, generator))
    return twin


@torch.no_grad()
def monte_carlo(
    model: EncoderDecoder, inputs: Tensor, metas: list[dict], passes: int = 10, seed: int = 0
) -> Tensor:
    """Mean probabilities over passes with only dropout active; batch norm uses its running statistics.

    The model itself stays as it is, modes included, and so does torch's global random state: other threads
    may use both meanwhile. The same seed gives the same result for the same batch.

    Args:
        model: A segmentor; each pass is its ``inference``, test-time augmentation and windows included.
        inputs: Normalised images, float (N, 3, H, W).
        metas: Meta information of each image.
        passes: Number of passes, 1 or more (T).
        seed: Of the dropped elements.

    Returns:
        Float32 (N, C, H, W); of a single logit both classes, (N, 2, H, W).

    Raises:
        InputError: If passes is below 1, or no dropout layer has a ratio above 0.
    """
    if passes < 1:
        raise InputError(f'Monte-Carlo dropout: passes={passes}; take 1 or more, usually 10')
    check_dropout(model)
    twin = _with_dropout(model, seed)
    if not any(isinstance(layer, _SeededDropout) for layer in twin.backbone.modules()):
        twin.backbone = _Remembered(twin.backbone)
    total = None
    for _ in range(passes):
        if isinstance(twin.backbone, _Remembered):
            twin.backbone.place = 0
        # mmseg's sliding window writes into the metas.
        probabilities = to_probabilities(twin.inference(inputs, [dict(meta) for meta in metas]))
        total = probabilities if total is None else total.add_(probabilities)
    return total.div_(passes)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel's distribution over C classes.

    Args:
        probabilities: Float (N, C, H, W), summing to 1 over C.

    Returns:
        Nats, float (N, H, W): 0 where one class is certain, ln C where all are alike.
    """
    # entr is -p ln p, 0 at 0. A probability a rounding above 1 would give less than nothing.
    return torch.special.entr(probabilities).sum(dim=1).clamp_(min=0)
