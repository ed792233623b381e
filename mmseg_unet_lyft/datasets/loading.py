"""From a PNG file or a packed frame to an image or a checked label: read, verify, decode, map to ids."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import BaseStorageBackend, register_backend
from mmseg.registry import TRANSFORMS
from PIL import Image

from ..errors import InputError
from .labels import get_scheme, tags_to_ids
from .packed import PREFIX, is_address, read_packed

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Offsets into a PNG's first chunk. Source: PNG specification, section 11.2.2 (IHDR).
_BIT_DEPTH, _COLOUR_TYPE = 24, 25
_PALETTE = 3
_RED_OF_BGR = 2


def read_png(path: str | Path) -> bytes:
    """The bytes of a PNG whose chunk checksums were verified.

    Raises:
        InputError: If the file is missing, unreadable, empty, no PNG, cut short or damaged.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f'{path}: no such file; restore it from the archive') from None
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); check its permissions') from None
    if not content.startswith(_PNG_SIGNATURE):
        what = 'is empty' if not content else 'is not a PNG file'
        raise InputError(f'{path}: {what}; restore it from the archive (a label must never be a JPEG)')
    try:
        Image.open(io.BytesIO(content)).verify()
    # Pillow reports damage as SyntaxError ("broken PNG file"), OSError, ValueError, or, without any image
    # data, as IndexError.
    except (SyntaxError, OSError, ValueError, IndexError) as error:
        raise InputError(f'{path}: damaged or cut short ({error}); restore it from the archive') from None
    return content


def read_image(path: str | Path) -> np.ndarray:
    """An image, BGR, uint8 (H, W, 3); read-only where it is a packed frame's.

    Raises:
        InputError: If the file is no sound PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    image = cv2.imdecode(np.frombuffer(read_png(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return image


def read_raw_label(path: str | Path) -> np.ndarray:
    """CARLA tags of a label: of a PNG the red channel of RGB or RGBA, the value of L, the index of P.

    Returns:
        Tags as stored, uint8 (H, W); not yet checked against a scheme; read-only where packed.

    Raises:
        InputError: If the file is no sound 8-bit PNG, or the packed frame is damaged.
    """
    if is_address(path):
        return read_packed(str(path))
    content = read_png(path)
    if content[_BIT_DEPTH] == 16:
        raise InputError(f'{path}: 16 bits a channel; labels have 8. Save it again as an 8-bit PNG')
    if content[_COLOUR_TYPE] == _PALETTE:
        # OpenCV would turn the indices into their colours.
        try:
            raw = np.asarray(Image.open(io.BytesIO(content)))
        except OSError:
            raw = None
    else:
        raw = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise InputError(f'{path}: damaged image data; restore it from the archive')
    return raw if raw.ndim == 2 else np.ascontiguousarray(raw[..., _RED_OF_BGR])


def read_label(path: str | Path, scheme_name: str) -> np.ndarray:
    """Train ids of a label, uint8 (H, W).

    Raises:
        InputError: If the file is no sound label, or holds a tag outside 0..12.
    """
    raw_label = read_raw_label(path)
    try:
        return tags_to_ids(raw_label, get_scheme(scheme_name))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


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
        - img_path

    Added Keys:
        - gt_seg_map (np.uint8, (H, W))
        - seg_fields
    """

    def transform(self, results: dict) -> dict:
        """The results with ``gt_seg_map``; raises InputError where label and image do not match."""
        if 'seg_map_path' not in results:
            return results
        label = read_label(results['seg_map_path'], results['scheme'])
        if label.shape != tuple(results['ori_shape'][:2]):
            height, width = results['ori_shape'][:2]
            raise InputError(
                f'{results["seg_map_path"]}: label of {label.shape[0]}x{label.shape[1]} (height x width), '
                f'but its image {results["img_path"]} is {height}x{width}; they are not of the same frame'
            )
        results['gt_seg_map'] = label
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results
