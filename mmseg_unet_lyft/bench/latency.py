"""The latency card: how long a frame takes, stage by stage, from the start on, and beside mmseg's own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..evaluation.challenge import WANTED_FPS, challenge_ids, challenge_masks
from ..evaluation.submission import encode_mask
from ..inference.segmenter import Segmenter
from ..report.figures import overlay
from .rounds import Seconds, Show, alternate, spread, timed, with_spread
from .subject import Subject, drawn_frames, find_subject

BATCHES = (1, 2, 4, 8)
_FRAMES = 4
# Issue 5: seconds from the start of a process to its first label map, without imports and one warm pass.
_TARGETS = {'.onnx': 0.25, '.xml': 0.6}
_PERCENTILES = (50, 95, 99)


def measure(
    words: Sequence[str],
    options: Sequence[str],
    device: str | None,
    size: tuple[int, int],
    rounds: int,
    starts: int,
    show: Show,
) -> dict:
    """The whole card.

    Args:
        words: The model, as in `find_subject`.
        options: Of ``--cfg-options``.
        device: Where it computes, None for the best there is.
        size: (height, width) of the drawn frames.
        rounds: Turns of each measurement.
        starts: Fresh processes that are started; on the CPU, whatever the device.
        show: Wraps the rounds, given how many there are and what is done.

    Raises:
        InputError: If the model cannot be had.
    """
    frames = drawn_frames(_FRAMES, size)
    with tempfile.TemporaryDirectory() as folder:
        subject = find_subject(words, options, device, Path(folder))
        segmenter = subject.segmenter()
        figures = dict(
            model=subject.name,
            size=f'{size[0]}x{size[1]}',
            device=subject.device,
            stages=measure_stages(segmenter, frames, rounds, show),
            batches=measure_batches(segmenter, frames, max(rounds // 5, 2), show),
        )
        if subject.config is not None:
            figures['beside_mmseg'] = compare_with_mmseg(subject, segmenter, frames, rounds, show)
        if starts:
            figures['start'] = measure_start(subject.path, frames[0], starts, show)
    return figures


def stages_of(segmenter: Segmenter, frame: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What happens to a frame, stage by stage, each on what the one before it gave."""
    encoded = cv2.imencode('.png', frame)[1]
    label = segmenter(frame, colours='BGR')
    masks = challenge_masks(label, segmenter.classes) if _has_masks(segmenter) else None
    stages: dict[str, Callable[[], Any]] = dict(decode=lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    if segmenter.is_exported:
        # The file does it all.
        stages['network'] = lambda: segmenter(frame, colours='BGR')
    else:
        import torch

        network = segmenter.network
        with torch.inference_mode():
            images = network.inputs(frame[None], 'BGR')
            logits = network.logits(images, frame.shape[:2])
        on_gpu = images.is_cuda

        def staged(work: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                with torch.inference_mode():
                    result = work()
                if on_gpu:
                    torch.cuda.synchronize()
                return result

            return run

        stages['preprocess'] = staged(lambda: network.inputs(frame[None], 'BGR'))
        stages['network'] = staged(lambda: network.logits(images, frame.shape[:2]))
        stages['postprocess'] = staged(lambda: network.ids(logits).cpu().numpy())
    stages['overlay'] = lambda: overlay(frame, label, segmenter.palette)
    if masks is not None:
        stages['encode challenge masks'] = lambda: [encode_mask(mask) for mask in masks]
    return stages


def _has_masks(segmenter: Segmenter) -> bool:
    """Whether its classes have vehicles and road."""
    try:
        challenge_ids(segmenter.classes)
    except InputError:
        return False
    return True


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p95`` and ``p99`` in milliseconds."""
    return {f'p{share}': 1000 * float(np.percentile(seconds, share)) for share in _PERCENTILES}


def measure_stages(segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show) -> dict:
    """Percentiles of every stage, and of all from frame to label map; the first turn is not counted."""
    prepared = [stages_of(segmenter, frame) for frame in frames]
    for frame, stages in zip(frames, prepared, strict=True):
        stages['frame to label map'] = lambda frame=frame: segmenter(frame, colours='BGR')
    found: dict[str, list[float]] = {name: [] for name in prepared[0]}
    for turn in show(range(rounds + 1), rounds + 1, 'stages'):
        for name, work in prepared[turn % len(prepared)].items():
            found[name].append(timed(work).wall)
    return {name: percentiles(seconds[1:]) for name, seconds in found.items()}


def measure_batches(segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show) -> dict:
    """Frames a second by batch size, taking turns; the first turn of each is not counted."""
    batches = {size: np.stack([frames[index % len(frames)] for index in range(size)]) for size in BATCHES}
    works = {
        str(size): lambda batch=batch: timed(lambda: segmenter(batch, colours='BGR'), len(batch))
        for size, batch in batches.items()
    }
    found = alternate(rounds + 1, works, show, 'batches')
    return {size: spread(1 / turn.wall for turn in turns[1:]) for size, turns in found.items()}


def compare_with_mmseg(
    subject: Subject, segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show
) -> dict:
    """Ours beside ``mmseg.apis.inference_model`` and ``MMSegInferencer`` on one checkpoint and frames.

    Returns:
        Seconds a frame of each as `spread`, how many times as fast ours is, and on which share of pixels the
        label maps agree.
    """
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    model = init_model(subject.config.copy(), subject.path, subject.device)
    names = dict(classes=segmenter.classes, palette=segmenter.palette)
    inferencer = MMSegInferencer(subject.config.copy(), subject.path, device=subject.device, **names)
    inferencer.show_progress = False
    turn = iter(range(10**9))

    def take(work: Callable[[np.ndarray], Any]) -> Callable[[], Seconds]:
        return lambda: timed(lambda: work(frames[next(turn) // 3 % len(frames)]))

    works = {
        'Segmenter': take(lambda frame: segmenter(frame, colours='BGR')),
        'mmseg inference_model': take(lambda frame: inference_model(model, frame)),
        'mmseg MMSegInferencer': take(lambda frame: inferencer(frame, return_datasamples=True)),
    }
    found = alternate(rounds + 1, works, show, 'beside mmseg')
    ours = [one.wall for one in found['Segmenter'][1:]]
    agreeing = [
        np.mean(
            segmenter(frame, colours='BGR')
            == inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy()
        )
        for frame in frames
    ]
    return dict(
        seconds={name: spread(one.wall for one in turns[1:]) for name, turns in found.items()},
        times_as_fast={
            name: spread(other.wall / mine for other, mine in zip(turns[1:], ours, strict=True))
            for name, turns in found.items()
            if name != 'Segmenter'
        },
        agreeing_pixels=float(np.mean(agreeing)),
    )


def measure_start(model: str, frame: np.ndarray, rounds: int, show: Show) -> dict[str, dict[str, float]]:
    """Seconds from the start of a fresh process to its first label map, beside one that only imports.

    Args:
        model: A checkpoint that describes its model, or an exported file.
        frame: BGR, uint8 (H, W, 3).
        rounds: Turns of both.
        show: Wraps the rounds.

    Returns:
        ``imports``: of the runtime and OpenCV; ``first_label_map``; ``second``: the warm pass behind it in
        the same process; ``beyond``: the first label map without imports and one warm pass.
    """
    runtime = {'.onnx': 'onnxruntime', '.xml': 'openvino'}.get(Path(model).suffix, 'torch, mmseg.apis')
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / 'frame.png'
        cv2.imwrite(str(place), frame)
        first = (
            'import time, cv2\n'
            'from mmseg_unet_lyft.inference.segmenter import Segmenter\n'
            f'segmenter = Segmenter({model!r})\n'
            f'frame = cv2.imread({str(place)!r})\n'
            "segmenter(frame, colours='BGR')\n"
            "print('first', flush=True)\n"
            'start = time.perf_counter()\n'
            "segmenter(frame, colours='BGR')\n"
            'print(time.perf_counter() - start)\n'
        )
        found: dict[str, list[float]] = dict(imports=[], first_label_map=[], second=[], beyond=[])
        for _ in show(range(rounds), rounds, 'cold starts'):
            imports, _ = _until_first_line(f"import cv2, {runtime}\nprint('imported', flush=True)\n")
            label, rest = _until_first_line(first)
            warm = float(rest)
            for name, seconds in zip(found, (imports, label, warm, label - imports - warm), strict=True):
                found[name].append(seconds)
    return {name: spread(seconds) for name, seconds in found.items()}


def _until_first_line(code: str) -> tuple[float, str]:
    """Seconds until a fresh process that runs the code prints its first line, and what it prints then."""
    root = str(Path(__file__).resolve().parents[2])
    environ = os.environ | dict(
        PYTHONPATH=os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    )
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        # Libraries print lines of their own.
        for line in process.stdout:
            if line.startswith(('imported', 'first')):
                break
        seconds = time.perf_counter() - start
        return seconds, process.stdout.read()


def table(figures: dict) -> str:
    """The card in lines."""
    lines = [f'{figures["model"]}, frames of {figures["size"]}, device {figures["device"]}']
    lines.append(f'{"stage, ms":26}{"p50":>9}{"p95":>9}{"p99":>9}')
    for name, found in figures['stages'].items():
        lines.append(f'{name:26}' + ''.join(f'{found[key]:9.2f}' for key in found))
    for size, found in figures['batches'].items():
        lines.append(f'batch of {size}: {with_spread(found, 2)} frames a second')
    best = max(figures['batches'], key=lambda size: figures['batches'][size]['median'])
    lines.append(f'best batch: {best}')
    fps = figures['batches']['1']['median']
    holds = 'holds' if fps >= WANTED_FPS else 'does not hold'
    lines.append(f'{holds} {WANTED_FPS:g} FPS at batch 1: {fps:.2f} without reading and writing')
    for name, found in figures.get('start', {}).items():
        target = _TARGETS.get(Path(figures['model']).suffix) if name == 'beyond' else None
        aim = f', aim {target}' if target else ''
        lines.append(f'cold start, {name.replace("_", " ")}: {with_spread(found, 3)} s{aim}')
    if 'beside_mmseg' in figures:
        beside = figures['beside_mmseg']
        for name, found in beside['times_as_fast'].items():
            lines.append(f'{with_spread(found, 2)} times as fast as {name}')
        lines.append(f'same label on {100 * beside["agreeing_pixels"]:.4f} % of pixels')
    return '\n'.join(lines)
