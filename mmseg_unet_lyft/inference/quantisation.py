"""From an exported ``.onnx`` file to smaller ones: float16, or int8 calibrated on frames."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.reading import read_image
from ..datasets.scenes import draw_frame
from ..errors import InputError
from .exported import FRAMES, METADATA_KEY

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_CONVOLUTIONS = ('Conv', 'ConvTranspose')
_REMEDY = 'export the model with mmseg_unet_lyft.inference.export'
# Of frames that are drawn where there are no data: those of the Lyft data.
_DRAWN_SIZE = (600, 800)


def half_onnx(path: str | Path, out: str | Path) -> None:
    """Write an exported file with its network in float16: half as large.

    What is around the network, that is normalisation, softmax and thresholds, stays in float32.

    Args:
        path: A float32 ``.onnx`` file from `export.export_onnx`.
        out: The file; may be ``path``.

    Raises:
        InputError: If a package is missing, or the file cannot be read or is not a float32 one of ours.
    """
    _require_packages()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model, metadata = _load(path)
    inner = _network_nodes(model.graph)
    outer = [node.name for node in model.graph.node if node.name not in inner]
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=outer)
    _save(half, out, metadata, 'float16')


def quantise_onnx(path: str | Path, out: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Write an exported file with its network in int8, calibrated on frames; a quarter as large.

    Args:
        path: A float32 ``.onnx`` file from `export.export_onnx`.
        out: The file; may be ``path``.
        frames: As the network will see them, uint8 (H, W, 3) in the file's colour order, BGR; read one by
            one.

    Raises:
        InputError: As in `half_onnx`, or if there are no frames.
    """
    _require_packages()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, metadata = _load(path)
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / 'prepared.onnx', Path(folder) / 'int8.onnx'
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = _read(prepared)
        inner = _network_nodes(model.graph)
        reader = _FrameReader(path, frames)
        quantize_static(
            str(prepared),
            str(quantised),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=sorted(inner),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=dict(CalibMaxIntermediateOutputs=1),
        )
        _save(_read(quantised), out, metadata, 'int8')


def calibration_frames(data_root: str | Path | None, number: int, split: str | list[str] = 'val') -> Iterator:
    """Frames to calibrate with, BGR, uint8 (H, W, 3), one by one.

    Args:
        data_root: Folder of a data set; None for drawn frames.
        number: Of frames, spread evenly over the split.
        split: As in `datasets.lyft_carla.find_pairs`.

    Raises:
        InputError: As in `datasets.lyft_carla.find_pairs`, if an image is damaged.
    """
    if data_root is None:
        height, width = _DRAWN_SIZE
        for index in range(number):
            image, _ = draw_frame('F1', 5 * index, height=height, width=width)
            yield np.ascontiguousarray(image[..., ::-1])
        return
    from ..datasets.lyft_carla import find_pairs

    pairs = find_pairs(Path(data_root), split)
    chosen = np.linspace(0, len(pairs) - 1, min(number, len(pairs))).astype(int)
    for index in chosen:
        yield read_image(pairs[index]['img_path'])


class _FrameReader:
    """Frames as ONNX Runtime's calibration asks for them: one at a time."""

    def __init__(self, path: str | Path, frames: Iterable[np.ndarray]) -> None:
        self._frames = iter(frames)
        self._first = list(islice(self._frames, 1))
        if not self._first:
            raise InputError(f'{path}: no frames to calibrate int8 with; give some, or leave int8 out')

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next frame as a batch of one; None at the end."""
        frame = self._first.pop() if self._first else next(self._frames, None)
        return None if frame is None else {FRAMES: np.ascontiguousarray(frame[None])}


def _require_packages() -> None:
    """Raise an InputError if what rewrites files is not installed."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        names = ' '.join(missing)
        raise InputError(f'float16 and int8 files need {names}; install with: pip install {names}')


def _read(path: str | Path) -> ModelProto:
    import onnx

    return onnx.load(str(path))


def _load(path: str | Path) -> tuple[ModelProto, dict]:
    """An exported file, and its metadata."""
    from google.protobuf.message import DecodeError

    try:
        model = _read(path)
    except FileNotFoundError:
        raise InputError(f'{path}: no such file') from None
    except DecodeError as error:
        raise InputError(f'{path}: cannot be read as an ONNX model ({error})') from error
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise InputError(f'{path}: was not exported by this project, it holds no {METADATA_KEY}; {_REMEDY}')
    metadata = json.loads(texts[0])
    if metadata.get('precision', 'float32') != 'float32':
        raise InputError(f'{path}: is {metadata["precision"]} already; start from the float32 file')
    return model, metadata


def _save(model: ModelProto, path: str | Path, metadata: dict, precision: str) -> None:
    """Write a model with the metadata of the file it came from."""
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata | dict(precision=precision))})
    onnx.save(model, str(path))


def _network_nodes(graph: GraphProto) -> set[str]:
    """Names of the nodes from the first convolution to the last, the logits: the network alone."""
    behind, before = set(), set()
    reached: set[str] = set()
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS or reached.intersection(node.input):
            behind.add(node.name)
            reached.update(node.output)
    needed: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in _CONVOLUTIONS or needed.intersection(node.output):
            before.add(node.name)
            needed.update(_inputs(node))
    return behind & before


def _inputs(node: NodeProto) -> list[str]:
    return [name for name in node.input if name]
