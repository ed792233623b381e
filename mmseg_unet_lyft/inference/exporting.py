"""Exporting whole: written beside its place, compared with its network, and only then put there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.files import sync
from ..errors import InputError
from ..evaluation.thresholds import Thresholds
from .export import convert_to_openvino, export_onnx, export_program, export_torchscript
from .formats import EXPORT_SUFFIXES
from .network import TorchNetwork
from .parity import BAR, Parity, compare
from .quantisation import half_onnx, quantise_onnx
from .samples import Frame, calibration_frames, drawn_frames, real_frames
from .seal import seal
from .segmenter import Segmenter

_CALIBRATION_FRAMES = 32
# Formats whose runtime computes in them, or keeps them small.
PRECISIONS = dict(float32=tuple(EXPORT_SUFFIXES), float16=('onnx', 'openvino'), int8=('onnx', 'openvino'))


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
        kind: Of `EXPORT_SUFFIXES`.
        path: Where to; OpenVINO's ``.bin`` goes beside.
        precision: Of `PRECISIONS`.
        max_loss: Points of mIoU, or without truth percent of pixels, that other precisions than float32 may
            cost.
        overwrite: Whether a file that is there may be replaced.
    """

    kind: str
    path: Path
    precision: str = 'float32'
    max_loss: float = 1.0
    overwrite: bool = False

    def check(self) -> None:
        """Raise an InputError for what cannot be written, before anything is computed."""
        if self.kind not in PRECISIONS[self.precision]:
            raise InputError(
                f'--format {self.kind} has no {self.precision}; formats that have it: '
                f'{", ".join(PRECISIONS[self.precision])}'
            )
        if self.path.suffix != EXPORT_SUFFIXES[self.kind]:
            raise InputError(
                f'{self.path}: files of --format {self.kind} end in {EXPORT_SUFFIXES[self.kind]}'
            )
        if not self.path.parent.is_dir():
            raise InputError(f'{self.path}: {self.path.parent} does not exist; name a folder that does')
        for part in self.parts():
            if part.is_dir():
                raise InputError(f'{part}: is a folder; name a file with --out')
            if part.exists() and not self.overwrite:
                raise InputError(f'{part}: is there already; name another --out, or give --overwrite')

    def parts(self) -> tuple[Path, ...]:
        """The files it consists of, the one that is opened last."""
        return (self.path.with_suffix('.bin'), self.path) if self.kind == 'openvino' else (self.path,)


@dataclass(frozen=True)
class Proof:
    """What a file is compared on, beside drawn frames.

    Attributes:
        data_root: Real frames; None for drawn ones alone.
        drives: Those it is compared on: a split's name, or drives.
        calibrated_on: Those that int8 is calibrated on.
        frames: How many.
    """

    data_root: Path | None = None
    drives: str | Sequence[str] = 'test'
    calibrated_on: str | Sequence[str] = 'val'
    frames: int = 32

    def of(self, network: TorchNetwork) -> Iterator[tuple[str, Iterator[Frame]]]:
        """Kinds of frames by name, with their ids under a network's scheme; real ones at its size."""
        yield 'drawn frames', drawn_frames(network.scheme)
        if self.data_root is not None:
            real = real_frames(self.data_root, self.drives, self.frames, network.scheme, network.size)
            yield 'real frames', real


def export(segmenter: Segmenter, wanted: Export, proof: Proof, say: Callable[[str], None]) -> None:
    """Write a model, compare the file with it, and put it in its place.

    Args:
        segmenter: The model, in PyTorch on the CPU.
        wanted: What is to be written.
        proof: What it is compared on.
        say: Takes what was found, in lines.

    Raises:
        InputError: If the file is not as good as it has to be (there is none then), a package is missing, or
            the model cannot be exported.
    """
    wanted.check()
    if segmenter.thresholds is not None and any(segmenter.thresholds.dilations):
        raise InputError(
            f'{wanted.path}: not written, the thresholds dilate masks by {segmenter.thresholds.dilations} '
            'pixels, which an exported file cannot; set them to 0 in their file, or use the checkpoint'
        )
    kinds = list(proof.of(segmenter.network))
    try:
        with tempfile.TemporaryDirectory(prefix='.export-', dir=wanted.path.parent) as folder:
            path = Path(folder) / wanted.path.name
            say(f'writing {wanted.kind}, then comparing it with PyTorch; this takes minutes on few cores')
            _write(segmenter, wanted, path, proof)
            candidate = Segmenter(path, trust=True)
            for what, frames in kinds:
                parity = compare(segmenter, candidate, frames)
                for line in parity.lines(what):
                    say(line)
                _require(parity, wanted, what)
            del candidate
            _put_in_place(path, wanted)
    except OSError as error:
        raise InputError(
            f'{wanted.path}: not written ({error.strerror or error}); make room, or name another --out'
        ) from error


def _put_in_place(path: Path, wanted: Export) -> None:
    """Give a proven file its name."""
    if wanted.kind == 'openvino':
        # Never the graph of one model beside the weights of another.
        wanted.path.unlink(missing_ok=True)
    for part in wanted.parts():
        sync(path.parent / part.name)
        (path.parent / part.name).replace(part)
    sync(wanted.path.parent)


def _write(segmenter: Segmenter, wanted: Export, path: Path, proof: Proof) -> None:
    """Write the file, or OpenVINO's two, at a path."""
    thresholds: Thresholds | None = segmenter.thresholds
    given = (segmenter.network, path, None if thresholds is None else thresholds.masks)
    if wanted.kind in ('torch', 'torchscript'):
        (export_program if wanted.kind == 'torch' else export_torchscript)(*given)
        return
    plain = path.with_name('float32.onnx')
    onnx = export_onnx(given[0], plain, given[2])
    if wanted.precision == 'int8':
        onnx = path.with_name('int8.onnx')
        quantise_onnx(
            plain,
            onnx,
            calibration_frames(
                proof.data_root, _CALIBRATION_FRAMES, proof.calibrated_on, segmenter.network.size
            ),
        )
    elif wanted.precision == 'float16':
        onnx = path.with_name('float16.onnx')
        half_onnx(plain, onnx)
    if wanted.kind == 'openvino':
        convert_to_openvino(onnx, path)
    else:
        onnx.replace(path)
    seal(path)


def _require(parity: Parity, wanted: Export, what: str) -> None:
    """Raise an InputError for a file that is not as good as its precision has to be."""
    if wanted.precision == 'float32':
        # Not nan either, which compares as false.
        if not parity.agreement >= BAR:
            raise InputError(
                f'{wanted.path}: not written, the file labels {100 * parity.agreement:.4f} % of pixels '
                f'({what}) as PyTorch does, and {100 * BAR:g} % is asked for; try another --format'
            )
        return
    loss = 100 * (1 - parity.agreement) if parity.miou is None else parity.miou[0] - parity.miou[1]
    if not loss <= wanted.max_loss:
        unit = '% of pixels' if parity.miou is None else 'points of mIoU'
        raise InputError(
            f'{wanted.path}: not written, {wanted.precision} costs {loss:.2f} {unit} ({what}), and '
            f'--max-loss is {wanted.max_loss:g}; allow more with it, or leave --half and --int8 out'
        )
