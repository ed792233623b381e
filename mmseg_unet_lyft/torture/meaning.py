"""What a file says, by readers that the product does not use for it: the truth the oracle goes by."""

from __future__ import annotations

import ast
import base64
import io
import json
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .kind import Other

# What Pillow raises for damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, Image.DecompressionBombError)


def of_image(content: bytes, before: bytes, suffix: str) -> bool | Other | None:
    """By Pillow: the same colours, others, or damaged."""
    pixels = _picture(content)
    if pixels is None:
        return None
    if _same(pixels, _picture(before)):
        return True
    return Other(cv2.imencode('.png', pixels[..., ::-1])[1].tobytes())


def of_label(content: bytes, before: bytes, suffix: str) -> bool | Other | None:
    """By Pillow: the same tags, others, or no label."""
    tags = _tags(content)
    if tags is None:
        return None
    if _same(tags, _tags(before)):
        return True
    pixels = np.zeros((*tags.shape, 3), np.uint8)
    pixels[..., 2] = tags
    return Other(cv2.imencode('.png', pixels)[1].tobytes())


def of_packed(content: bytes, before: bytes, suffix: str) -> bool | None:
    """By NumPy or as JSON: the same, or not what was packed."""
    if suffix == '.json':
        return of_json(content, before, suffix)
    try:
        arrays = [np.load(io.BytesIO(one)) for one in (content, before)]
    except (ValueError, OSError, EOFError, TypeError, SyntaxError):
        return None
    return _same(*arrays) and arrays[0].dtype == arrays[1].dtype or None


def of_json(content: bytes, before: bytes, suffix: str) -> bool | None:
    """As JSON: the same or not."""
    try:
        return json.loads(content) == json.loads(before) or None
    except ValueError:
        return None


def of_checkpoint(content: bytes, before: bytes, suffix: str) -> bool | None:
    """By the checksums and contents of zip members; of a note beside a checkpoint, by its words."""
    if suffix != '.pth':
        return content.split() == before.split() or None
    now, members = _members(content), _members(before)
    if now is None:
        return None
    return now == members or None


def of_answer(content: bytes, before: bytes, suffix: str) -> bool | Other | None:
    """As JSON and by Pillow: the same masks, others, or no answer."""
    masks, masks_before = _masks(content), _masks(before)
    if masks is None:
        return None
    if masks.keys() == masks_before.keys() and all(
        _same(one, other)
        for frame, pair in masks.items()
        for one, other in zip(pair, masks_before[frame], strict=True)
    ):
        return True
    clean = {
        frame: [base64.b64encode(cv2.imencode('.png', mask)[1]).decode() for mask in pair]
        for frame, pair in masks.items()
    }
    return Other(json.dumps(clean).encode())


def of_video(content: bytes, before: bytes, suffix: str) -> bool | Other | None:
    """By OpenCV: the same frames, others (a codec decodes much damage), or none."""
    frames = [_frames(one, suffix) for one in (content, before)]
    if not frames[0]:
        return None
    same = len(frames[0]) == len(frames[1]) and all(map(_same, *frames))
    return same or Other()


def of_config(content: bytes, before: bytes, suffix: str) -> bool | Other | None:
    """By Python's parser: the same program, another, or none."""
    try:
        return ast.dump(ast.parse(content)) == ast.dump(ast.parse(before)) or Other()
    except (SyntaxError, ValueError):
        return None


def _picture(content: bytes) -> np.ndarray | None:
    """RGB, uint8 (H, W, 3)."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _DAMAGE:
        return None
    if image.mode.startswith('I'):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert('RGB'))


def _tags(content: bytes) -> np.ndarray | None:
    """Red, or the index, or the grey value of a PNG, uint8 (H, W)."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _DAMAGE:
        return None
    if image.format != 'PNG' or image.mode.startswith('I'):
        return None
    pixels = np.asarray(image.convert('L') if image.mode == '1' else image)
    return pixels if pixels.ndim == 2 else pixels[..., 0]


def _members(content: bytes) -> dict[str, bytes] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return None
    except (KeyError, RuntimeError, zipfile.zlib.error):
        return None


def _masks(content: bytes) -> dict[str, list[np.ndarray]] | None:
    """The masks of an answer by frame; None if any is unsound."""
    try:
        frames = json.loads(content)
        pairs = {frame: [_picture(base64.b64decode(text)) for text in pair] for frame, pair in frames.items()}
    except (ValueError, TypeError, AttributeError):
        return None
    if any(len(pair) != 2 or any(mask is None for mask in pair) for pair in pairs.values()):
        return None
    return {frame: [mask[..., 0] for mask in pair] for frame, pair in pairs.items()}


def _frames(content: bytes, suffix: str) -> list[np.ndarray]:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        Path(file.name).write_bytes(content)
        capture = cv2.VideoCapture(file.name)
        frames = []
        while True:
            there, frame = capture.read()
            if not there:
                capture.release()
                return frames
            frames.append(frame)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool((one == other).all())
