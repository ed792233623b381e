"""From an exported ``.onnx`` file to smaller ones: float16, or int8 calibrated on frames."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .exported import FRAMES, METADATA_KEY, open_exported

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_CONVOLUTIONS = ('Conv', 'ConvTranspose')
# Norms that were not folded, and what is rare, compute in float32.
_QUANTISED = (
    *_CONVOLUTIONS,
    *('Relu', 'LeakyRelu', 'Clip'),
    *('MaxPool', 'AveragePool', 'Resize'),
    *('Add', 'Concat', 'Slice', 'Pad'),
)


def half_onnx(path: str | Path, out: str | Path, computes_half: bool = False) -> None:
    """Write an exported file with float16 weights: half as large.

    Its runtime widens them once, when it loads the file. OpenVINO's files made of it by
    `export.convert_to_openvino` hold float16 as well.

    Args:
        path: A float32 ``.onnx`` file from `export.export_onnx`.
        out: The file; may be ``path``.
        computes_half: Whether the network computes in float16 too, for GPUs that gain by it. On a CPU,
            ONNX Runtime converts between layers and takes longer. Normalisation, softmax and thresholds
            stay in float32.

    Raises:
        InputError: If a package is missing, or the file cannot be read or is not a float32 one of ours.
    """
    _require_packages()
    model, metadata = _load(path)
    if computes_half:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        inner = _network_nodes(model.graph)
        outer = [node.name for node in model.graph.node if node.name not in inner]
        model = convert_float_to_float16(model, op_block_list=[], node_block_list=outer)
    else:
        _halve_weights(model.graph)
    _save(model, out, metadata, 'float16')


def _halve_weights(graph: GraphProto) -> None:
    """Store the weights of convolutions in float16, with a Cast to float32 behind each."""
    from onnx import TensorProto, helper, numpy_helper

    names = {node.input[1] for node in graph.node if node.op_type in _CONVOLUTIONS}
    for weight in graph.initializer:
        if weight.name in names and weight.data_type == TensorProto.FLOAT:
            name, half = weight.name, f'{weight.name}.half'
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), half))
            graph.node.insert(0, helper.make_node('Cast', [half], [name], half, to=TensorProto.FLOAT))


def quantise_onnx(path: str | Path, out: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Write an exported file with its network in int8, calibrated on frames: nearly a quarter as large.

    Weights are int8, one scale a channel, activations uint8. The first convolution, whose input are
    normalised pixels, and the last, which gives the logits, stay in float32, as all around the network does:
    in int8 they cost nearly half of the pixels that change, and gain no time.

    Args:
        path: A float32 ``.onnx`` file from `export.export_onnx`.
        out: The file; may be ``path``.
        frames: As the network will see them, BGR, uint8 (H, W, 3); read one by one.

    Raises:
        InputError: As in `half_onnx`, or if there are no frames or one is none.
    """
    _require_packages()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, metadata = _load(path)
    reader = _FrameReader(frames)
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = Path(folder) / 'prepared.onnx', Path(folder) / 'int8.onnx'
        # Shapes alone: norms are folded already, and what it optimises it ties to a runtime's version.
        quant_pre_process(str(path), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantised),
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_quantize=sorted(_network_nodes(model.graph) - _end_convolutions(model.graph)),
            per_channel=True,
            # What CPUs multiply fastest; signed activations took a third longer.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Cut at their 99.99th percentile, activations gave no better labels and took longer.
            calibrate_method=CalibrationMethod.MinMax,
        )
        _save(_read(quantised), out, metadata, 'int8')


class _FrameReader:
    """Frames as ONNX Runtime's calibration asks for them: one at a time."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        self._frames = iter(frames)
        # Before anything is computed.
        self._next = next(self._frames, None)
        if self._next is None:
            raise InputError('int8 needs frames to calibrate with and there are none; give some 32')

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next frame as a batch of one; None at the end."""
        frame, self._next = self._next, next(self._frames, None)
        if frame is None:
            return None
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(
                f'a frame to calibrate with is {frame.dtype} {frame.shape}; expected uint8 (height, width, 3)'
            )
        return {FRAMES: np.ascontiguousarray(frame[None])}


def _require_packages() -> None:
    """Raise an InputError if what rewrites files is not installed."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        names = ' '.join(missing)
        raise InputError(f'float16 and int8 files need {names}; install with: pip install {names}')


def _load(path: str | Path) -> tuple[ModelProto, dict]:
    """An exported file, and its metadata."""
    if Path(path).suffix != '.onnx':
        raise InputError(f'{path}: float16 and int8 start from an .onnx file; export that first')
    # It knows what is wrong with a file.
    open_exported(str(path), threads=1)
    model = _read(path)
    (text,) = (entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)
    metadata = json.loads(text)
    precision = metadata.get('precision', 'float32')
    if precision != 'float32':
        raise InputError(f'{path}: is {precision} already; start from the float32 file')
    return model, metadata


def _read(path: str | Path) -> ModelProto:
    import onnx

    return onnx.load(str(path))


def _save(model: ModelProto, path: str | Path, metadata: dict, precision: str) -> None:
    """Write a model with the metadata of the file it came from."""
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata | dict(precision=precision))})
    onnx.save(model, str(path))


def _network_nodes(graph: GraphProto) -> set[str]:
    """Names of the nodes from the first convolution to the logits: the network, without what is around it."""
    behind, before = _reach(graph)
    convolutions = {node.name for node in graph.node if node.op_type in _CONVOLUTIONS}
    return (behind | convolutions) & (before | convolutions)


def _end_convolutions(graph: GraphProto) -> set[str]:
    """Names of the convolutions that have no other before them, or none behind them."""
    behind, before = _reach(graph)
    return {
        node.name
        for node in graph.node
        if node.op_type in _CONVOLUTIONS and not (node.name in behind and node.name in before)
    }


def _reach(graph: GraphProto) -> tuple[set[str], set[str]]:
    """Names of the nodes that lie behind a convolution, and of those that lie before one."""
    behind, before = set(), set()
    made: set[str] = set()
    for node in graph.node:
        if made.intersection(node.input):
            behind.add(node.name)
        if node.name in behind or node.op_type in _CONVOLUTIONS:
            made.update(node.output)
    needed: set[str] = set()
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            before.add(node.name)
        if node.name in before or node.op_type in _CONVOLUTIONS:
            needed.update(node.input)
    return behind, before
