"""What pipelines load frames with: the label transform, and packed frames as files."""

from __future__ import annotations

from pathlib import Path

import cv2
from mmcv.transforms import BaseTransform
from mmengine.fileio import BaseStorageBackend, register_backend
from mmseg.registry import TRANSFORMS

from ..errors import InputError
from .packed import PREFIX, read_packed
from .png import read_png
from .reading import read_image, read_label, read_raw_label

__all__ = ['LoadLyftLabel', 'LyftPackedBackend', 'read_image', 'read_label', 'read_png', 'read_raw_label']


def require_same_size(
    kind: str, path: str | Path, shape: tuple[int, ...], image_path: str | Path, image_shape: tuple[int, ...]
) -> None:
    """Raise an InputError if a file of that kind, such as a label, is not as large as its image."""
    (height, width), (image_height, image_width) = shape[:2], image_shape[:2]
    if (height, width) != (image_height, image_width):
        raise InputError(
            f'{path}: {kind} of {height}x{width} (height x width), but its image {image_path} is '
            f'{image_height}x{image_width}; they are not of the same frame'
        )


class LyftPackedBackend(BaseStorageBackend):
    """Packed frames as image files, for whatever reads by path: mmcv's loaders, mmseg's visualisation."""

    def get(self, filepath: str) -> bytes:
        """An image as BMP, which costs least to make and read, or a label as grey PNG."""
        pixels = read_packed(str(filepath))
        # A grey BMP has a palette, which some readers take for colours.
        return cv2.imencode('.bmp' if pixels.ndim == 3 else '.png', pixels)[1].tobytes()

    def get_text(self, filepath: str) -> str:
        """Nothing: frames are no text."""
        raise InputError(f'{filepath}: is a packed frame and no text')


register_backend(PREFIX, LyftPackedBackend, prefixes=PREFIX, force=True)


@TRANSFORMS.register_module()
class LoadLyftLabel(BaseTransform):
    """Load a frame's label as train ids of the data set's scheme.

    Takes the place of mmseg's ``LoadAnnotations``, which knows neither the red channel nor the hood.

    Required Keys:
        - seg_map_path (without it, as in ``mmseg.apis.inference_model``, nothing is loaded)
        - scheme
        - ori_shape
        - stats_root (optional)
        - img_path

    Added Keys:
        - gt_seg_map (np.uint8, (H, W))
        - seg_fields
    """

    def transform(self, results: dict) -> dict:
        """The results with ``gt_seg_map``; raises InputError where label and image do not match."""
        if 'seg_map_path' not in results:
            return results
        label = read_label(results['seg_map_path'], results['scheme'], results.get('stats_root'))
        paths = results['seg_map_path'], results['img_path']
        require_same_size('label', paths[0], label.shape, paths[1], results['ori_shape'])
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results
