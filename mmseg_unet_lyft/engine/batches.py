"""What a training batch holds, whichever pipeline packed it: file names, labels, all of it as plain data."""

from __future__ import annotations

from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor

from ..errors import InputError
from ..models.preprocessor import split_pixels


def metas_of(batch: dict) -> list[dict]:
    """Meta information of a batch's frames; an empty list of a batch that carries none."""
    if 'metas' in batch:
        return list(batch['metas'])
    return [getattr(sample, 'metainfo', {}) for sample in batch.get('data_samples') or []]


def names_of(batch: dict) -> list[str]:
    """Image paths of a batch's frames, as far as they are known."""
    return [str(meta['img_path']) for meta in metas_of(batch) if meta.get('img_path')]


def labels_of(batch: dict) -> list[Tensor]:
    """Label maps (H, W) of a batch's frames, on the device they came to."""
    if 'pixels' in batch:
        return list(split_pixels(batch['pixels'], batch['crop_size'])[1])
    samples = batch.get('data_samples') or []
    return [sample.gt_sem_seg.data.squeeze(0) for sample in samples if 'gt_sem_seg' in sample]


def check_labels(batch: dict, num_classes: int, ignore_index: int) -> None:
    """Raise an InputError for a label outside the classes: on a GPU it would end the process.

    Args:
        batch: As a loader gives it, not yet on the device.
        num_classes: Ids go from 0 to one less.
        ignore_index: The id that does not count.
    """
    for index, label in enumerate(labels_of(batch)):
        # Two quick passes; most labels end here.
        if int(label.max()) < num_classes and int(label.min()) >= 0:
            continue
        wrong = ((label < 0) | (label >= num_classes)) & (label != ignore_index)
        if not wrong.any():
            continue
        row, column = wrong.nonzero()[0].tolist()
        meta = metas_of(batch)[index]
        name = meta.get('seg_map_path') or meta.get('img_path') or f'frame {index} of the batch'
        raise InputError(
            f'{name}: class id {int(label[row, column])} in its crop at row {row}, col {column}; the decode '
            f'head has {num_classes} classes, ids from 0 to {num_classes - 1}, and {ignore_index} does not '
            'count. Set decode_head.num_classes, or mend the label'
        )


def plain_batch(batch: Any) -> Any:
    """A batch as tensors, numbers, text and containers of them, which a checkpoint file may hold."""
    if isinstance(batch, BaseDataElement):
        fields = {**batch.metainfo, **dict(batch.all_items())}
        return plain_batch(fields)
    if isinstance(batch, dict):
        return {str(key): plain_batch(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [plain_batch(value) for value in batch]
    if isinstance(batch, Tensor):
        return batch.detach().cpu()
    if batch is None or type(batch) in (bool, int, float, str):
        return batch
    # NumPy's numbers and arrays.
    return plain_batch(batch.tolist()) if hasattr(batch, 'tolist') else str(batch)
