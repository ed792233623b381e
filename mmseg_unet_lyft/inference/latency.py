"""The latency card: how long a frame takes, stage by stage and from a cold start, next to mmseg's own API."""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from ..compat import register_classes
from ..engine.config import load_config, parse_options
from ..engine.device import choose_device, device_name
from ..engine.model_spec import KEY, describe
from ..errors import InputError, printable
from ..evaluation.challenge import WANTED_FPS, challenge_ids, challenge_masks, encode_mask
from ..report.pictures import overlay
from ..synthetic.scenes import draw_frame
from . import EXPORTED, PROGRAM
from . import MODELS as MODEL_SUFFIXES
from .segmenter import Segmenter

DEFAULT_CONFIG = 'unet_lyft_bn.py'
Show = Callable[[Iterable, int, str], Iterable]  # Wraps rounds, given how many there are and what is done.


class Seconds(NamedTuple):
    """Seconds that one sample takes: wall clock, and CPU time of the measuring process."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], samples: int = 1) -> Seconds:
    """Run work on this many samples, and return the seconds of one."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds((time.perf_counter() - wall) / samples, (time.process_time() - cpu) / samples)


def alternate(
    rounds: int, works: dict[str, Callable[[], Seconds]], show: Show, what: str
) -> dict[str, list[Seconds]]:
    """Run every work once a round, in turn, so that other load on the machine affects all alike."""
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in show(range(rounds), rounds, what):
        for name, work in works.items():
            found[name].append(work())
    return found


def spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """``median``, ``least`` and ``most`` of values times a scale."""
    values = [value * scale for value in values]
    return dict(median=statistics.median(values), least=min(values), most=max(values))


def with_spread(found: dict[str, float], digits: int = 1) -> str:
    """A `spread` as text: ``2.0 (1.0-4.0)``."""
    return f'{found["median"]:.{digits}f} ({found["least"]:.{digits}f}-{found["most"]:.{digits}f})'


class Subject(NamedTuple):
    """The model that is measured: a checkpoint that describes it, or an exported file."""

    name: str  # In tables.
    path: str
    config: Config | None  # None for a file alone.
    device: str

    def segmenter(self, threads: int | None = None) -> Segmenter:
        """The model, ready to label frames."""
        words = (self.path,) if self.config is None else (self.config, self.path)
        return Segmenter(*words, device=self.device, threads=threads)


def find_subject(words: Sequence[str], options: Sequence[str], wanted: str | None, folder: Path) -> Subject:
    """The model that a command's words and ``--cfg-options`` name.

    Words are a model, a config and a checkpoint, a config alone, or nothing (`DEFAULT_CONFIG`). Without a
    checkpoint, random weights are saved to ``folder``. ``wanted`` is the device; exports default to the CPU.
    """
    *configs, last = words or [DEFAULT_CONFIG]
    is_model = last.endswith(MODEL_SUFFIXES)
    if last.endswith(PROGRAM):
        raise InputError(f'{last}: .pt2 files are not measured; name an .onnx, .xml or checkpoint')
    if len(configs) > 1 or (configs and not is_model):
        raise InputError(f'{" ".join(words)}: name a model, a config and its checkpoint, or a config alone')
    if last.endswith(EXPORTED):
        on = wanted or 'cpu'
    else:
        choose_device(wanted)
        on = device_name(wanted)
    if is_model and not configs:
        if options:
            raise InputError('--cfg-options: change a config; name it before the model')
        return Subject(Path(last).name, last, None, on)
    config = load_config(configs[0] if configs else last, parse_options(list(options)))
    name = Path(config.filename).name
    path = last if is_model else save_random_weights(config, folder / 'random.pth')
    return Subject(name if is_model else f'{name} (random weights)', path, config, on)


def save_random_weights(config: Config, path: Path) -> str:
    """Write a checkpoint of a config's model as PyTorch initialises it with seed 0; returns its path."""
    register_classes()
    with torch.random.fork_rng(), DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict(), meta={KEY: describe(config)}), path)
    return str(path)


def synthetic_frames(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Frames of one drive, about five metres apart, BGR, uint8 (H, W, 3)."""
    height, width = size
    images = (draw_frame('F1', 5 * index, height=height, width=width)[0] for index in range(number))
    return [np.ascontiguousarray(image[..., ::-1]) for image in images]


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Measure the card, for JSON, with the options of ``benchmark latency``; cold starts use the CPU."""
    frames = synthetic_frames(4, (args.height, args.width))
    with tempfile.TemporaryDirectory() as folder:
        subject = find_subject(args.words, args.cfg_options, args.device, Path(folder))
        segmenter = subject.segmenter()
        figures = dict(
            model=subject.name,
            size=f'{args.height}x{args.width}',
            device=subject.device,
            stages=measure_stages(segmenter, frames, args.rounds, show),
            batches=measure_batches(segmenter, frames, max(args.rounds // 5, 2), show),
        )
        if subject.config is not None:
            figures['against_mmseg'] = compare_with_mmseg(subject, segmenter, frames, args.rounds, show)
        if args.starts:
            figures['start'] = measure_start(subject.path, frames[0], args.starts, show)
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
            found[name].append(timed(work).wall)
    return {
        name: {f'p{share}': 1000 * float(np.percentile(seconds[1:], share)) for share in (50, 95, 99)}
        for name, seconds in found.items()
    }


def measure_batches(segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show) -> dict:
    """Frames a second by batch size, taking turns; the first turn of each is not counted."""
    works = {}
    for size in (1, 2, 4, 8):
        batch = np.stack([frames[index % len(frames)] for index in range(size)])
        works[str(size)] = lambda batch=batch: timed(lambda: segmenter(batch, colours='BGR'), len(batch))
    found = alternate(rounds + 1, works, show, 'batches')
    return {size: spread(1 / turn.wall for turn in turns[1:]) for size, turns in found.items()}


def compare_with_mmseg(
    subject: Subject, segmenter: Segmenter, frames: Sequence[np.ndarray], rounds: int, show: Show
) -> dict:
    """Seconds a frame of `Segmenter`, mmseg's ``inference_model`` and ``MMSegInferencer`` on one checkpoint.

    Also how many ``times_as_fast`` `Segmenter` is, round by round, and the share of ``agreeing_pixels``.
    """
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    model = init_model(subject.config.copy(), subject.path, subject.device)
    names = dict(classes=segmenter.classes, palette=segmenter.palette)
    inferencer = MMSegInferencer(subject.config.copy(), subject.path, device=subject.device, **names)
    inferencer.show_progress = False

    def take(work: Callable[[np.ndarray], Any]) -> Callable[[], Seconds]:
        stream = itertools.cycle(frames)
        return lambda: timed(lambda: work(next(stream)))

    works = {
        'Segmenter': take(lambda frame: segmenter(frame, colours='BGR')),
        'mmseg inference_model': take(lambda frame: inference_model(model, frame)),
        'mmseg MMSegInferencer': take(lambda frame: inferencer(frame, return_datasamples=True)),
    }
    found = {name: turns[1:] for name, turns in alternate(rounds + 1, works, show, 'and mmseg').items()}
    agreeing = [
        segmenter(frame, colours='BGR') == inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy()
        for frame in frames
    ]
    return dict(
        seconds={name: spread(one.wall for one in turns) for name, turns in found.items()},
        times_as_fast={
            name: spread(
                other.wall / ours.wall for other, ours in zip(turns, found['Segmenter'], strict=True)
            )
            for name, turns in found.items()
            if name != 'Segmenter'
        },
        agreeing_pixels=float(np.mean(agreeing)),
    )


def measure_start(model: str, frame: np.ndarray, rounds: int, show: Show) -> dict[str, dict[str, float]]:
    """Seconds from the start of a fresh process to its first label map of a BGR frame.

    ``imports`` of the runtime and OpenCV, by a process that does nothing else; ``first_label_map``;
    ``second``, the warm pass after it; ``beyond``, ``first_label_map`` less ``imports`` and ``second``.
    """
    runtime = {'.onnx': 'onnxruntime', '.xml': 'openvino'}.get(Path(model).suffix, 'torch, mmseg.apis')
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / 'frame.png'
        cv2.imwrite(str(place), frame)
        first = (
            'import time, cv2\n'
            'from mmseg_unet_lyft.inference.segmenter import Segmenter\n'
            f"segmenter = Segmenter({model!r}, device='cpu')\n"
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
        return time.perf_counter() - start, process.stdout.read()


def table(figures: dict) -> str:
    """The card in lines."""
    lines = [
        f'{figures["model"]}, frames of {figures["size"]}, device {figures["device"]}',
        f'{"stage, ms":26}{"p50":>9}{"p95":>9}{"p99":>9}',
    ]
    for name, found in figures['stages'].items():
        lines.append(f'{name:26}' + ''.join(f'{value:9.2f}' for value in found.values()))
    for size, found in figures['batches'].items():
        lines.append(f'batch of {size}: {with_spread(found, 2)} frames a second')
    best = max(figures['batches'], key=lambda size: figures['batches'][size]['median'])
    fps = figures['batches']['1']['median']
    holds = 'holds' if fps >= WANTED_FPS else 'does not hold'
    lines.append(f'best batch: {best}')
    lines.append(f'{holds} {WANTED_FPS:g} FPS at batch 1: {fps:.2f} without reading and writing')
    for name, found in figures.get('start', {}).items():
        lines.append(f'cold start, {name.replace("_", " ")}: {with_spread(found, 3)} s')
    if 'against_mmseg' in figures:
        compared = figures['against_mmseg']
        for name, found in compared['times_as_fast'].items():
            lines.append(f'{with_spread(found, 2)} times as fast as {name}')
        lines.append(f'same label on {100 * compared["agreeing_pixels"]:.4f} % of pixels')
    return '\n'.join(map(printable, lines))
