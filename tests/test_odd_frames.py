"""Frames of any size, mode and orientation get a label map of their size, or one refusal, on every path."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmseg_unet_lyft.demo.app import Model, label_image
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.export import export_onnx
from mmseg_unet_lyft.inference.folder import KINDS, Outputs, predict_images
from mmseg_unet_lyft.inference.frames import open_frames, read_frame
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.video import OverlayVideo, Plan, Sink, label_video

from .test_segmenter import save_random

PIXELS = 20_000  # Budget of a frame.
SMALLEST = 16  # Side that four pools need.
SCALE = (64, 48)
ORIENTATION = 0x0112  # EXIF's tag.

chosen = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck
)


@st.composite
def sizes(draw):
    """(height, width), both from 1 to 4096, narrow and wide ones alike."""
    one = draw(st.integers(1, 140) | st.integers(1, 4096))
    other = draw(st.integers(1, min(4096, PIXELS // one)))
    return draw(st.permutations([one, other]))


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def is_taken(size) -> bool:
    """Whether mmcv's Resize to 64x48, the ratio kept, leaves a network with four pools something to pool."""
    factor = min(64 / max(size), 48 / min(size))
    return min(int(side * factor + 0.5) for side in size) >= SMALLEST


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A checkpoint that resizes frames, its exported file, and it without the resize."""
    folder = tmp_path_factory.mktemp('models')
    config = load_config('configs/unet_lyft_bn.py', dict(base_channels=2, image_scale_wh=SCALE))
    path = save_random(config, folder / 'random.pth')
    checkpoint = Segmenter(path)
    file = Segmenter(export_onnx(checkpoint.network, folder / 'x.onnx', probabilities=True), threads=1)
    config.test_pipeline = []
    return dict(checkpoint=checkpoint, file=file, plain=Segmenter(config, path))


@chosen
@given(size=sizes(), number=st.sampled_from([None, 1, 2]))
def test_arrays_of_any_size_are_labelled_alike_by_file_and_checkpoint_or_refused_by_both(
    models, size, number
):
    frames = noise(*size, 3) if number is None else noise(number, *size, 3)
    labels = {}
    for name, segmenter in models.items():
        if not (min(size) >= SMALLEST if name == 'plain' else is_taken(size)):
            with pytest.raises(InputError, match=f'{size[0]}x{size[1]}'):
                segmenter(frames, colours='BGR')
            continue
        labels[name] = segmenter(frames, colours='BGR')
        assert labels[name].shape == frames.shape[:-1]
        assert segmenter.masks(frames, colours='BGR').shape == (*frames.shape[:-3], 2, *size)
        assert segmenter.probabilities(frames, colours='BGR').shape == (*frames.shape[:-3], 13, *size)
    if 'file' in labels:
        assert (labels['file'] == labels['checkpoint']).mean() > 0.99


@chosen
@given(
    size=sizes(),
    mode=st.sampled_from(['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16', 'CMYK']),
    suffix=st.sampled_from(['png', 'jpg', 'bmp', 'tif', 'webp']),
    orientation=st.integers(1, 8),
    name=st.sampled_from(['checkpoint', 'file']),
)
def test_image_files_of_any_form_are_labelled_or_listed(
    models, tmp_path_factory, size, mode, suffix, orientation, name
):
    folder = tmp_path_factory.mktemp('images')
    path, out, segmenter = folder / f'x.{suffix}', folder / 'out', models[name]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(noise(*size, 3))
    picture = Image.fromarray(noise(*size, dtype=np.uint16)) if mode == 'I;16' else picture.convert(mode)
    try:
        picture.save(path, exif=exif)
    except (OSError, ValueError):
        # A format that has no such mode.
        picture.convert('RGB').save(path, exif=exif)
    frame_size = read_frame(path).shape[:2]
    assert sorted(frame_size) == sorted(size)
    done = predict_images(
        segmenter, [(path, path.with_suffix('.png').relative_to(folder))], Outputs(out, KINDS, passes=1)
    )
    if not is_taken(size):
        (problem,) = done.problems
        assert problem.startswith(f'{path}: ')
        assert not list(out.glob('*/*'))
        with pytest.raises(InputError, match=f'{frame_size[0]}x{frame_size[1]}'):
            label_image([Model('m', '', segmenter)], path, out)
        return
    assert done.problems == []
    results = [Image.open(out / kind / 'x.png').size[::-1] for kind in KINDS]
    seen = label_image([Model('m', '', segmenter)], path, out)
    assert {*results, seen.size, seen.image.shape[:2], seen.answers[0].label.shape} == {frame_size}


class Sizes(Sink):
    """Keeps the size of each frame with that of its label map."""

    def __init__(self):
        self.found = []

    def prepare(self, frame, result):
        return frame.shape[:2], result.shape

    def write(self, prepared):
        self.found.append(prepared)


@settings(chosen, max_examples=25)
@given(first=sizes(), other=sizes(), overlap=st.booleans())
def test_the_frames_of_a_video_have_label_maps_of_one_size(models, tmp_path_factory, first, other, overlap):
    folder = tmp_path_factory.mktemp('frames')
    for number, size in enumerate((first, first, other)):
        cv2.imwrite(str(folder / f'{number}.png'), noise(*size, 3))
    sink = Sizes()
    with open_frames(str(folder)) as frames:
        painted = OverlayVideo(folder / 'x.mp4', frames.size, 10, models['file'].palette)
        plan = Plan(2, 1) if overlap else Plan(1, None)
        arguments = (models['file'], frames, [sink, painted], plan)
        if is_taken(first) and first == other:
            label_video(*arguments)
        else:
            with pytest.raises(InputError):
                label_video(*arguments)
        painted.close()
    assert all(found == (tuple(first), tuple(first)) for found in sink.found)
    assert len(sink.found) == (0 if not is_taken(first) else 3 if first == other else 2)
