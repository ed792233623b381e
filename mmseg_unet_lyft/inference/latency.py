"""The latency card: how long a frame takes, stage by stage and from a cold start."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import InputError, printable
from ..evaluation.challenge import WANTED_FPS, challenge_ids, challenge_masks, encode_mask
from ..report.pictures import overlay
from ..synthetic.scenes import draw_frame
from .segmenter import Segmenter

Show = Callable[[Iterable, int, str], Iterable]  # Wraps rounds, given how many there are and what is done.


def spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """``median``, ``least`` and ``most`` of values times a scale."""
    values = [value * scale for value in values]
    return dict(median=statistics.median(values), least=min(values), most=max(values))


def with_spread(found: dict[str, float], digits: int = 1) -> str:
    """A `spread` as text: ``2.0 (1.0-4.0)``."""
    return f'{found["median"]:.{digits}f} ({found["least"]:.{digits}f}-{found["most"]:.{digits}f})'


def synthetic_frames(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Frames of one drive, about five metres apart, BGR, uint8 (H, W, 3)."""
    height, width = size
    images = (draw_frame('F1', 5 * index, height=height, width=width)[0] for index in range(number))
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]


def measure(segmenter: Segmenter, model: str, args: argparse.Namespace, show: Show) -> dict:
    """Measure the card of a model file, for JSON, with the options of ``benchmark latency``.

    Cold starts use the CPU, and are of models that need no config.
    """
    frames = synthetic_frames(4, (args.height, args.width))
    figures = dict(
        model=Path(model).name,
        size=f'{args.height}x{args.width}',
        device=args.device or str(getattr(segmenter.network, 'device', 'cpu')),
        stages=measure_stages(segmenter, frames, args.rounds, show),
    )
    if args.starts and args.words == [model]:
        figures['start'] = measure_start(model, frames[0], args.starts, show)
    return figures


def stages_of(segmenter: Segmenter, frame: np.ndarray) -> dict[str, Callable[[], Any]]:
    """A frame's stages by name: functions, each of which works on the result of the one before."""
    encoded = cv2.imencode('.png', frame)[1]
    label = segmenter(frame, colours='BGR')
    stages: dict[str, Callable[[], Any]] = dict(decode=lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    if segmenter.is_exported:
        # The file does everything from pixels to ids.
        stages['network'] = lambda: segmenter(frame, colours='BGR')
    else:
        network = segmenter.network
        with torch.inference_mode():
            images = network.inputs(frame[None], 'BGR')
            logits = network.logits(images, frame.shape[:2])

        def staged(work: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                result = work()
                if images.is_cuda:
                    torch.cuda.synchronize()
                return result

            return torch.inference_mode()(run)

        stages['preprocess'] = staged(lambda: network.inputs(frame[None], 'BGR'))
        stages['network'] = staged(lambda: network.logits(images, frame.shape[:2]))
        stages['postprocess'] = staged(lambda: network.ids(logits).cpu().numpy())
    stages['overlay'] = lambda: overlay(frame, label, segmenter.palette)
    try:
        challenge_ids(segmenter.classes)
    except InputError:
        # Without vehicles and road there are no challenge masks.
        return stages
    masks = challenge_masks(label, segmenter.classes)
    stages['encode challenge masks'] = lambda: [encode_mask(mask) for mask in masks]
    return stages


def measure_stages(segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show) -> dict:
    """``p50``, ``p95`` and ``p99`` of every stage and of all, in ms; the first turn is not counted."""
    prepared = [stages_of(segmenter, frame) for frame in frames]
    for frame, stages in zip(frames, prepared, strict=True):
        stages['frame to label map'] = lambda frame=frame: segmenter(frame, colours='BGR')
    found: dict[str, list[float]] = {name: [] for name in prepared[0]}
    for turn in show(range(rounds + 1), rounds + 1, 'stages'):
        for name, work in prepared[turn % len(prepared)].items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return {
        name: {f'p{share}': 1000 * float(np.percentile(seconds[1:], share)) for share in (50, 95, 99)}
        for name, seconds in found.items()
    }


def measure_start(model: str, frame: np.ndarray, rounds: int, show: Show) -> dict[str, dict[str, float]]:
    """Seconds from the start of a fresh process to its first label map of a BGR frame.

    ``imports`` of the runtime and OpenCV, by a process that does nothing else; ``first_label_map``;
    ``second``, the warm pass after it; ``beyond``, ``first_label_map`` less ``imports`` and ``second``.
    """
    runtime = {'.onnx': 'onnxruntime', '.xml': 'openvino', '.pt2': 'torch'}.get(
        Path(model).suffix, 'torch, mmseg.apis'
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / 'frame.png'
        cv2.imwrite(str(place), frame)
        first = (
            'import time, cv2\n'
            'from mmseg_unet_lyft.inference.segmenter import Segmenter\n'
            f"segmenter = Segmenter({model!r}, device='cpu', trust=True)\n"
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
    """Seconds until a fresh process that runs the code prints its first line, and the text after it."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    command, environ = [sys.executable, '-c', code], os.environ | dict(PYTHONPATH=paths)
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        # Libraries print lines of their own.
        for line in process.stdout:
            if line.startswith(('imported', 'first')):
                break
        seconds, rest = time.perf_counter() - start, process.stdout.read()
    if process.returncode:
        raise InputError(f'the fresh process of a cold start ended with {process.returncode}; see above')
    return seconds, rest


def table(figures: dict) -> str:
    """The card in lines."""
    lines = [
        f'{figures["model"]}, frames of {figures["size"]}, device {figures["device"]}',
        f'{"stage, ms":26}{"p50":>9}{"p95":>9}{"p99":>9}',
    ]
    for name, found in figures['stages'].items():
        lines.append(f'{name:26}' + ''.join(f'{value:9.2f}' for value in found.values()))
    fps = 1000 / figures['stages']['frame to label map']['p50']
    holds = 'holds' if fps >= WANTED_FPS else 'does not hold'
    lines.append(f'{holds} {WANTED_FPS:g} FPS: {fps:.2f} without reading and writing')
    for name, found in figures.get('start', {}).items():
        lines.append(f'cold start, {name.replace("_", " ")}: {with_spread(found, 3)} s')
    return '\n'.join(map(printable, lines))
