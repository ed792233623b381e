"""Batch work on the device: unpack bytes, normalise."""

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor


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

    On the device, the bytes become floats, are normalised and split into samples whose labels are views of
    one tensor. Lists of images with their samples (validation, test-time augmentation, ``mmseg.apis``) are
    processed by mmseg. Arguments are mmseg's.
    """

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """``inputs`` float (N, 3, H, W) and ``data_samples`` of a batch of ``lyft_collate`` or mmengine's."""
        if 'pixels' not in data:
            return super().forward(data, training)
        metas = data['metas']
        images, labels = split_pixels(self.cast_data(data['pixels']), data['crop_size'])
        # Planar channels: arithmetic on interleaved ones takes a CPU twice as long.
        inputs = images.to(torch.float32, memory_format=torch.contiguous_format)
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
