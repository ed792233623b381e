"""Batch work on the device: unpack bytes, change colours, normalise."""

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

_LEVELS = 255.0
_HUE_STEPS = 180.0  # OpenCV's hue in eight bits: half degrees


def change_colours(images: Tensor, colours: Tensor) -> Tensor:
    """Images with changed colours: brightness, contrast, saturation and hue, contrast.

    Does on floats what OpenCV does on bytes, so nothing is rounded in between.

    Args:
        images: BGR, float (N, 3, H, W), 0 to 255; the result has the same format.
        colours: Float (N, 5); for each image the number added to its levels, the factor on them before
            saturation and hue change, the factor on the saturation, the number added to the hue (of 180),
            and the factor on the levels afterwards.
    """
    added, before, saturation, hue, after = colours.to(images)[:, :, None, None].unbind(1)
    images = images.add(added[:, None]).clamp_(0, _LEVELS).mul_(before[:, None]).clamp_(0, _LEVELS)
    blue, green, red = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    sixth = torch.where(
        value == red,
        (green - blue),
        torch.where(value == green, (blue - red) + 2 * chroma, (red - green) + 4 * chroma),
    ) / chroma.clamp(min=1e-6) + hue * (6 / _HUE_STEPS)
    # At full saturation the darkest channel is 0; chroma cannot grow further.
    chroma = torch.minimum(chroma * saturation, value)
    # Source: HSV to RGB by one formula, https://en.wikipedia.org/wiki/HSL_and_HSV (alternative).
    offsets = torch.tensor([1.0, 3.0, 5.0], device=images.device, dtype=images.dtype)[:, None, None]
    place = (offsets + sixth[:, None]) % 6
    rise = torch.minimum(place, 4 - place).clamp_(0, 1)
    return (value[:, None] - chroma[:, None] * rise).mul_(after[:, None]).clamp_(0, _LEVELS)


def normalise(preprocessor: SegDataPreProcessor, images: Tensor) -> Tensor:
    """BGR images, float (N, 3, H, W), 0 to 255, converted and normalised as the preprocessor does it."""
    # The attribute's name in OneDL's stack, then in OpenMMLab's.
    names = ('_channel_conversion', 'channel_conversion')
    if any(getattr(preprocessor, name, False) for name in names):
        images = images.flip(1)
    return (images - preprocessor.mean).div_(preprocessor.std) if hasattr(preprocessor, 'mean') else images


@MODELS.register_module()
class LyftDataPreProcessor(SegDataPreProcessor):
    """mmseg's SegDataPreProcessor, which also takes the stacked bytes of ``lyft_collate``.

    On the device, the bytes become floats, change colour if the loader left that to it, are normalised and
    split into samples whose labels are views of one tensor. Lists of images with their samples (validation,
    test-time augmentation, ``mmseg.apis``) are processed by mmseg. Arguments are mmseg's.
    """

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """``inputs`` float (N, 3, H, W) and ``data_samples`` of a batch of ``lyft_collate`` or mmengine's."""
        if 'pixels' not in data:
            return super().forward(data, training)
        metas = data['metas']
        images, labels = split_pixels(self.cast_data(data['pixels']), data['crop_size'])
        # Planar channels: arithmetic on interleaved ones takes a CPU twice as long.
        inputs = images.to(torch.float32, memory_format=torch.contiguous_format)
        if 'colour' in metas[0]:
            inputs = change_colours(inputs, torch.tensor([meta['colour'] for meta in metas]))
        inputs = normalise(self, inputs)
        for image, meta in zip(inputs, metas, strict=True):
            height, width = meta.get('img_shape', image.shape[1:])[:2]
            # Frames smaller than the crop are padded after normalising, as mmseg does.
            image[:, height:] = self.pad_val
            image[:, :, width:] = self.pad_val
        samples = make_samples(labels.long(), metas)
        if training and self.batch_augments is not None:
            inputs, samples = self.batch_augments(inputs, samples)
        return dict(inputs=inputs, data_samples=samples)


def split_pixels(pixels: Tensor, crop_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and labels (N, H, W) as views of a batch's bytes (N, 4 H W)."""
    height, width = crop_size
    images, labels = pixels.split([3 * height * width, height * width], dim=1)
    return images.unflatten(1, (height, width, 3)).permute(0, 3, 1, 2), labels.unflatten(1, (height, width))


def make_samples(labels: Tensor, metas: list[dict]) -> list[SegDataSample]:
    """One sample per label map of (N, H, W); each holds a view of it."""
    samples = []
    for label, meta in zip(labels[:, None], metas, strict=True):
        sample = SegDataSample(metainfo=dict(meta, pad_shape=tuple(label.shape[1:])))
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return samples
