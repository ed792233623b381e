"""Exported files and what runs them; no runtime is imported before a file of its kind is opened."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..datasets.carla import hood_of_spans
from ..datasets.files import TEXT_BYTES, check_regular, checksum_file, is_intact, sha256_of_file
from ..datasets.image_io import LARGEST_RESIZED_PIXELS
from ..errors import InputError
from ..processes import parse_device
from . import PROGRAM

METADATA_KEY = 'mmseg_unet_lyft'
FORMAT = 2  # Files of format 1 lack the recipe's resize.
FRAMES, LABEL_MAP, MASKS, PROBABILITIES = 'frames', 'label_map', 'masks', 'probabilities'
_LARGEST_SIDE = 10_000  # Limit for the frames a hood was measured in.
_ROUNDING = 1e-2  # Of probabilities, in half precision.
_REMEDY = 'export the model with tools/export.py'

# A step that resizes frames: mmcv's scale, (width, height), and whether the ratio of the sides is kept.
Resizing = tuple[Sequence[int], bool]


def size_within(resizes: Sequence[Resizing], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) within a network of frames of a size; `export` writes the same in ONNX.

    Source: mmcv/image/geometric.py, rescale_size, in whole numbers
    """
    for scale, keeps_ratio in resizes:
        pairs = ((max(scale), max(size)), (min(scale), min(size)))
        kept = tuple(min((2 * side * to + of) // (2 * of) for to, of in pairs) for side in size)
        size = kept if keeps_ratio else (scale[1], scale[0])
    return size


def check_size(network: Any, size: tuple[int, int]) -> None:
    """Raise an InputError if frames of a (height, width) are too small for a network."""
    if network.resizes is None:
        return
    within, side = size_within(network.resizes, size), network.smallest_side
    if min(within) < side:
        resized = '' if within == size else f', {within[0]}x{within[1]} after its resize'
        raise InputError(
            f'{network.path}: frames of {size[0]}x{size[1]} (height x width{resized}) are too small, the '
            f'network takes {side}x{side} and more; pad frames that are so narrow'
        )


@dataclass(frozen=True)
class Classes:
    """The classes of a model."""

    names: list[str]  # By id.
    palette: list[list[int]]  # RGB colour of each, 0 to 255.
    hood: np.ndarray | None  # Where the ego hood was measured, bool (H, W); None stands for the Kaggle set's.
    scheme: str | None = None  # Name of the label scheme, if it is known.
    data_sha256: str | None = None  # Hash of the training data's ``stats.json``.


def checked_classes(fields: Mapping, path: str, remedy: str) -> Classes:
    """Classes from a file's ``classes``, ``palette``, ``hood`` (``dict(spans, size)`` or None), ``scheme``.

    An InputError names path and remedy.
    """
    names, palette, hood = (fields.get(key) for key in ('classes', 'palette', 'hood'))
    part = 'list of class names'
    try:
        if not (names and isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
            raise ValueError(names)
        part, colours = f'palette for {len(names)} classes', np.array(palette)
        if colours.shape != (len(names), 3) or colours.dtype.kind != 'i' or (colours & ~255).any():
            raise ValueError(palette)
        part = 'hood mask'
        if hood is not None:
            # The size first: a damaged one could ask for any amount of memory.
            if not 0 < max(hood['size']) <= _LARGEST_SIDE:
                raise ValueError(hood['size'])
            hood = hood_of_spans(hood['spans'], hood['size'])
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(f'{path}: its {part} is broken; {remedy}') from None
    texts = (fields.get(key) for key in ('scheme', 'data_sha256'))
    texts = (text if isinstance(text, str) else None for text in texts)
    return Classes(list(names), colours.tolist(), hood, *texts)


class ExportedNetwork:
    """Base of the networks in exported files: their metadata, and the choice of outputs.

    Several threads may call it at once. Arguments and errors of each kind are those of `open_exported`.
    """

    # A program's checks of sizes are assertions. What its metadata promise may be missing in a file.
    _errors: tuple[type[Exception], ...] = (AssertionError, LookupError, RuntimeError, ValueError)
    passes = 1

    def __init__(self, path: str, metadata: str | bytes | None) -> None:
        self.path = path
        if metadata is None:
            raise InputError(
                f'{path}: was not exported by this project, it holds no {METADATA_KEY}; {_REMEDY}'
            )
        try:
            # What is cut is not JSON any more.
            fields = json.loads(metadata[:TEXT_BYTES])
            is_known = fields['format'] == FORMAT and fields['colours'] in ('BGR', 'RGB')
            is_known &= LABEL_MAP in fields['outputs']
            self.resizes: list[Resizing] = [((int(x), int(y)), keeps) for (x, y), keeps in fields['resizes']]
            self.smallest_side, self.outputs = int(fields['smallest_side']), list(fields['outputs'])
            is_known &= all(x > 0 and 0 < x * y <= LARGEST_RESIZED_PIXELS for (x, y), _ in self.resizes)
        except (ValueError, KeyError, TypeError, RecursionError):
            is_known = False
        if not is_known:
            raise InputError(
                f'{path}: its {METADATA_KEY} metadata are broken or of another version (files before format '
                f"{FORMAT} lack the recipe's resize of frames); {_REMEDY} again, from its checkpoint"
            )
        classes = checked_classes(fields, path, _REMEDY)
        self.classes, self.palette, self.hood = classes.names, classes.palette, classes.hood
        self.scheme, self.data_sha256 = classes.scheme, classes.data_sha256
        self.colours: str = fields['colours']
        self.gives_probabilities = PROBABILITIES in self.outputs

    def label_maps(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class ids, uint8 (N, H, W), of frames uint8 (N, H, W, 3)."""
        return self.run(frames, colours, LABEL_MAP)[0]

    def labels_and_probabilities(self, frames: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and probabilities, float32 (N, C, H, W), of one pass.

        An InputError unless the file was exported with them.
        """
        self.check_passes(1)
        return tuple(self.run(frames, colours, LABEL_MAP, PROBABILITIES))

    def check_passes(self, passes: int) -> None:
        """Raise an InputError for several passes, since files have no dropout, or without probabilities."""
        if passes > 1:
            raise InputError(
                f'{self.path}: has no dropout; take one pass, or the checkpoint it was exported from'
            )
        if not self.gives_probabilities:
            raise InputError(
                f'{self.path}: gives no probabilities; export it with --probabilities, or use its checkpoint'
            )

    def uncertainty(
        self, frames: np.ndarray, colours: str, passes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and entropy, nats, float32 (N, H, W), of a single pass."""
        labels, shares = self.labels_and_probabilities(frames, colours)
        logarithms = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
        return labels, -(shares * logarithms).sum(1).clip(max=0)

    def run(self, frames: np.ndarray, colours: str, *outputs: str) -> list[np.ndarray]:
        """Outputs of frames uint8 (N, H, W, 3), by name; an InputError if the runtime does not take them.

        `LABEL_MAP` is uint8 (N, H, W). `MASKS`, if the file has them, are vehicle and road, uint8 {0, 1}
        (N, 2, H, W), the hood included; `PROBABILITIES`, if the file has them, float32 (N, C, H, W).
        """
        check_size(self, frames.shape[1:3])
        ordered = np.ascontiguousarray(frames if colours == self.colours else frames[..., ::-1])
        try:
            results = self._infer(ordered, outputs)
        except self._errors as error:
            size = f'{frames.shape[1]}x{frames.shape[2]}'
            raise InputError(f'{self.path}: does not take frames of {size} ({first_line(error)})') from error
        for name, result in zip(outputs, results, strict=True):
            self._check_output(name, result, frames.shape[:3])
        return results

    def _check_output(self, name: str, result: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise an InputError unless an output is what its name says, for frames of a shape (N, H, W)."""
        number, *size = shape
        dtype, of_one, largest = {
            LABEL_MAP: (np.uint8, (), len(self.classes) - 1),
            MASKS: (np.uint8, (2,), 1),
            PROBABILITIES: (np.float32, (len(self.classes),), 1 + _ROUNDING),
        }[name]
        is_shaped = result.dtype == dtype and result.shape == (number, *of_one, *size)
        # The comparison fails for nan, too.
        if not is_shaped or not (result.min() >= 0 and result.max() <= largest):
            found = f'{result.dtype} {result.shape}, up to {result.max(initial=0)}, for frames {shape}'
            raise InputError(
                f'{self.path}: its {name} is {found} and {len(self.classes)} classes; {_REMEDY} again'
            )


class OnnxNetwork(ExportedNetwork):
    """An ``.onnx`` file in ONNX Runtime; on ``'cuda'`` with onnxruntime-gpu."""

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        require(path, 'onnxruntime')
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        kind, index = parse_device(device)
        providers: list = ['CPUExecutionProvider']
        if kind != 'cpu':
            if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
                raise InputError(
                    f'--device {device}: this onnxruntime knows no CUDA; install onnxruntime-gpu'
                )
            providers.insert(0, ('CUDAExecutionProvider', dict(device_id=index)))
        # ONNX Runtime's errors have no common base class.
        self._errors += (state.InvalidProtobuf, state.Fail, state.InvalidGraph, state.InvalidArgument)
        self._errors += (state.NoModel, state.NotImplemented, state.RuntimeException, state.EPFail)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except self._errors as error:
            raise InputError(f'{path}: cannot be read as an ONNX model ({first_line(error)})') from error
        # Masks are not computed where label maps alone are asked for.
        self._asked_alone = onnxruntime.RunOptions()
        self._asked_alone.only_execute_path_to_fetches = True
        metadata = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        super().__init__(path, metadata)

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        return self._session.run(list(outputs), {FRAMES: frames}, self._asked_alone)


class OpenVinoNetwork(ExportedNetwork):
    """An ``.xml`` file with its ``.bin`` in OpenVINO, on the CPU."""

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        require(path, 'openvino')
        import openvino

        if parse_device(device)[0] != 'cpu':
            raise InputError(f'--device {device}: OpenVINO files run on the cpu here; use --device cpu')
        # Without the hint, CPUs with bfloat16 compute in that, and labels differ.
        settings = dict(INFERENCE_PRECISION_HINT='f32')
        if threads:
            settings |= dict(INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1)
        core = openvino.Core()
        try:
            model = core.read_model(path)
            self._compiled = core.compile_model(model, 'CPU', settings)
        except RuntimeError as error:
            raise InputError(f'{path}: cannot be read as an OpenVINO model ({first_line(error)})') from error
        # Requests hold a call's tensors, so each thread has its own.
        self._local = threading.local()
        has = model.has_rt_info([METADATA_KEY])
        metadata = str(model.get_rt_info([METADATA_KEY]).value) if has else None
        super().__init__(path, metadata)

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        if not hasattr(self._local, 'request'):
            self._local.request = self._compiled.create_infer_request()
        results = self._local.request.infer([frames])
        return [results[output].copy() for output in outputs]


# What torch raises, next to the errors of a call, for a file that is not a program.
_DAMAGED = (AttributeError, BadZipFile, EOFError, OSError, TypeError, UnpicklingError)


class ProgramNetwork(ExportedNetwork):
    """A ``.pt2`` program of torch.export; needs torch, but not mmcv, mmengine or mmseg.

    Reading one can run code that the file brings: torch evaluates expressions in it and may unpickle.
    """

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        require(path, 'torch')
        import torch
        from torch.export.passes import move_to_device_pass

        from ..engine.checkpoint import check_archive

        kind, index = parse_device(device)
        if kind == 'cuda' and index >= torch.cuda.device_count():
            raise InputError(f'--device {device}: this torch sees no such GPU; use --device cpu')
        self.device, self.threads = torch.device(device), threads
        check_archive(path)
        extra = {METADATA_KEY: ''}
        try:
            # torch logs a traceback for a file that it cannot read, before it raises.
            with quiet('torch.export'):
                program = torch.export.load(path, extra_files=extra)
            if kind != 'cpu':
                program = move_to_device_pass(program, self.device)
            self._module = program.module()
        except (*self._errors, *_DAMAGED) as error:
            raise InputError(f'{path}: cannot be read as a program ({first_line(error)})') from error
        super().__init__(path, extra[METADATA_KEY] or None)

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        import torch

        if self.threads and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        inputs = [torch.from_numpy(frames).to(self.device)]
        if any(keeps_ratio for _, keeps_ratio in self.resizes):
            # Computed in the program, the size within the network made torch take half a minute to read it.
            inputs.append(torch.zeros(size_within(self.resizes, frames.shape[1:3]), device=self.device))
        with torch.inference_mode():
            found = dict(zip(self.outputs, self._module(*inputs), strict=True))
        return [found[output].cpu().numpy() for output in outputs]


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Silence a logger, except for critical messages."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of a runtime's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def require(what: Any, *packages: str) -> None:
    """Raise an InputError unless the packages that something needs are installed."""
    missing = ' '.join(name for name in packages if find_spec(name) is None)
    if missing:
        raise InputError(f'{what}: needs {missing}; install with: pip install {missing}')


def parts_of(path: Path) -> list[Path]:
    """The files that an exported model consists of; the one to open comes last."""
    return [path.with_suffix('.bin'), path] if path.suffix == '.xml' else [path]


def write_checksums(path: Path) -> None:
    """List the SHA-256 of each part of an exported file in a ``PART.sha256``, as ``sha256sum`` does."""
    for part in parts_of(path):
        line = f'{sha256_of_file(part)}  {part.name}\n'
        checksum_file(part).write_text(line, encoding='utf-8', newline='\n')


def open_exported(
    path: str, device: str = 'cpu', threads: int | None = None, trust: bool = False
) -> ExportedNetwork:
    """The network in an exported file, by its suffix; arguments as in `Segmenter`.

    An InputError says that the file cannot be read, was not exported here, or is a program that is not
    trusted, or that the device does not exist.
    """
    suffix, parts = Path(path).suffix, parts_of(Path(path))
    for part in reversed(parts):
        check_regular(part)
    if suffix == PROGRAM and not trust:
        raise InputError(
            f'{path}: is a program, and reading it can run any code that it holds. If you know where it '
            'comes from, give --trust (trust=True in Python); .onnx files need none'
        )
    for part in parts:
        if is_intact(part) is False:
            raise InputError(
                f'{part}: is not what was exported, its checksum differs; take another copy, or if you '
                f'changed it yourself, remove {checksum_file(part).name}'
            )
    networks = {'.onnx': OnnxNetwork, '.xml': OpenVinoNetwork, PROGRAM: ProgramNetwork}
    return networks[suffix](path, device, threads)
