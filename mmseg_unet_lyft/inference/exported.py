"""Exported files: ONNX through onnxruntime, OpenVINO's own; neither torch nor an mm stack is needed.

An exported file takes ``frames`` uint8 (N, H, W, 3) and gives ``label_map`` uint8 (N, H, W), and may give
``masks`` uint8 (N, 2, H, W): vehicle and road, as the Lyft challenge asks for. What they mean stands in its
metadata under `METADATA_KEY`, as JSON.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .classes import checked_classes
from .formats import PROGRAMS
from .seal import check_seal

METADATA_KEY = 'mmseg_unet_lyft'
FORMAT = 1
FRAMES, LABEL_MAP, MASKS = 'frames', 'label_map', 'masks'


class ExportedNetwork:
    """What all runtimes share: the metadata, and which output is asked for."""

    def __init__(self, path: str, metadata: str | None, outputs: list[str]) -> None:
        self.path, self.outputs = path, outputs
        fields = _metadata(path, metadata)
        classes = checked_classes(fields, path, _REMEDY)
        self.classes, self.palette, self.hood = classes.names, classes.palette, classes.hood
        self.scheme, self.data_sha256 = classes.scheme, classes.data_sha256
        self.precision: str = fields.get('precision', 'float32')
        self.colours: str = fields['colours']
        if LABEL_MAP not in outputs:
            raise InputError(f'{path}: gives {", ".join(outputs)} and no {LABEL_MAP}; {_REMEDY}')

    def label_maps(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class ids, uint8 (N, H, W), of frames uint8 (N, H, W, 3)."""
        return self.run(self._in_order(frames, colours), LABEL_MAP)[0]

    def probabilities(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Nothing: raises an InputError, since the file gives label maps."""
        raise InputError(f'{self.path}: gives no probabilities; use the checkpoint it was exported from')

    def uncertainty(self, frames: np.ndarray, colours: str, passes: int, seed: int) -> None:
        """Nothing: raises an InputError, since the file has no dropout to keep active."""
        self.check_passes(passes)

    def check_passes(self, passes: int) -> None:
        """As `uncertainty`."""
        raise InputError(f'{self.path}: gives no uncertainty; use the checkpoint it was exported from')

    def labels_and_masks(self, frames: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, and vehicle and road, uint8 {0, 1} (N, 2, H, W), hood included; needs `MASKS`."""
        label_maps, masks = self.run(self._in_order(frames, colours), LABEL_MAP, MASKS)
        return label_maps, masks

    def _in_order(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Frames in the file's colour order, contiguous."""
        return np.ascontiguousarray(frames if colours == self.colours else frames[..., ::-1])

    def run(self, frames: np.ndarray, *outputs: str) -> list[np.ndarray]:
        """Outputs, by name, of contiguous frames uint8 (N, H, W, 3) in the file's colour order.

        Raises:
            InputError: If the runtime raises.
        """
        try:
            return self._infer(frames, outputs)
        except self._errors as error:
            size = f'{frames.shape[1]}x{frames.shape[2]}'
            raise InputError(f'{self.path}: does not take frames of {size} ({first_line(error)})') from error

    _errors: tuple[type[Exception], ...] = ()

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError


_REMEDY = 'export the model with tools/export.py'


def _metadata(path: str, text: str | None) -> dict[str, Any]:
    """The fields of a file's metadata.

    Raises:
        InputError: If they are missing, of another format, or not what they must be.
    """
    if text is None:
        raise InputError(f'{path}: was not exported by this project, it holds no {METADATA_KEY}; {_REMEDY}')
    try:
        fields = json.loads(text)
        sound = fields['format'] == FORMAT and fields['colours'] in ('BGR', 'RGB')
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f'{path}: its {METADATA_KEY} metadata are broken or of a newer version; {_REMEDY}')
    return fields


def parse_device(device: str) -> tuple[str, int]:
    """Kind and index of a device; raises an InputError unless it is ``'cpu'``, ``'cuda'`` or ``'cuda:N'``."""
    kind, _, index = device.partition(':')
    if kind not in ('cpu', 'cuda') or (index and not index.isdecimal()):
        raise InputError(f'--device {device}: choose cpu, cuda or cuda:N')
    return kind, int(index or 0)


def _require(module: str, package: str, path: str) -> None:
    """Raise an InputError if a runtime is not installed."""
    if find_spec(module) is None:
        raise InputError(f'{path}: needs {module}; install with: pip install {package}')


class OnnxNetwork(ExportedNetwork):
    """An ``.onnx`` file in ONNX Runtime; may be called from several threads.

    Args:
        path: The file.
        device: ``'cpu'``, or ``'cuda'``/``'cuda:N'`` with onnxruntime-gpu.
        threads: Computing threads of a call; one a core by default.

    Raises:
        InputError: If the file cannot be read or is not one of ours, or the device is not there.
    """

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        _require('onnxruntime', 'onnxruntime', path)
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
        broken = (state.InvalidProtobuf, state.Fail, state.InvalidGraph, state.InvalidArgument, state.NoModel)
        broken += (state.NotImplemented, state.RuntimeException, state.EPFail)
        check_seal(Path(path))
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except broken as error:
            raise InputError(f'{path}: cannot be read as an ONNX model ({first_line(error)})') from error
        (given,) = self._session.get_inputs() if len(self._session.get_inputs()) == 1 else (None,)
        if given is None or given.type != 'tensor(uint8)' or len(given.shape) != 4:
            raise InputError(f'{path}: does not take one batch of uint8 frames (N, H, W, 3); {_REMEDY}')
        self._input, self._errors = given.name, broken
        # Masks are not computed where label maps alone are asked for.
        self._asked_alone = onnxruntime.RunOptions()
        self._asked_alone.only_execute_path_to_fetches = True
        _require_bytes(
            path, {output.name: output.type == 'tensor(uint8)' for output in self._session.get_outputs()}
        )
        super().__init__(
            path,
            self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY),
            [output.name for output in self._session.get_outputs()],
        )

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        return self._session.run(list(outputs), {self._input: frames}, self._asked_alone)


class OpenVinoNetwork(ExportedNetwork):
    """An ``.xml`` file with its ``.bin`` in OpenVINO; may be called from several threads.

    Args:
        path: The ``.xml`` file.
        device: ``'cpu'``; OpenVINO has no CUDA.
        threads: Computing threads of a call; one a core by default.

    Raises:
        InputError: If the files cannot be read or are not ours.
    """

    def __init__(self, path: str, device: str = 'cpu', threads: int | None = None) -> None:
        _require('openvino', 'openvino', path)
        import openvino

        if device.partition(':')[0] != 'cpu':
            raise InputError(f'--device {device}: OpenVINO files run on the cpu here; use --device cpu')
        if not Path(path).with_suffix('.bin').is_file():
            raise InputError(f'{path}: its weights {Path(path).with_suffix(".bin").name} are not beside it')
        check_seal(Path(path))
        settings = dict(INFERENCE_PRECISION_HINT='f32')
        if threads:
            settings |= dict(INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1)
        core = openvino.Core()
        try:
            model = core.read_model(path)
            self._compiled = core.compile_model(model, 'CPU', settings)
        except RuntimeError as error:
            raise InputError(f'{path}: cannot be read as an OpenVINO model ({first_line(error)})') from error
        byte = openvino.Type.u8
        if [(given.element_type, len(given.partial_shape)) for given in model.inputs] != [(byte, 4)]:
            raise InputError(f'{path}: does not take one batch of uint8 frames (N, H, W, 3); {_REMEDY}')
        _require_bytes(path, {output.any_name: output.element_type == byte for output in model.outputs})
        # Requests hold a call's tensors, so each thread has its own.
        self._local = threading.local()
        has = model.has_rt_info([METADATA_KEY])
        metadata = str(model.get_rt_info([METADATA_KEY]).value) if has else None
        super().__init__(path, metadata, [output.any_name for output in model.outputs])

    _errors = (RuntimeError,)

    def _infer(self, frames: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        if not hasattr(self._local, 'request'):
            self._local.request = self._compiled.create_infer_request()
        results = self._local.request.infer([frames])
        return [results[output].copy() for output in outputs]


def _require_bytes(path: str, outputs: dict[str, bool]) -> None:
    """Raise an InputError for an output of ours that is not uint8."""
    for name, is_bytes in outputs.items():
        if name in (LABEL_MAP, MASKS) and not is_bytes:
            raise InputError(f'{path}: its {name} is not uint8; {_REMEDY}')


def first_line(error: BaseException) -> str:
    """The first line of a runtime's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def open_exported(
    path: str, device: str = 'cpu', threads: int | None = None, trust: bool = False
) -> ExportedNetwork:
    """The network in an exported file, by its suffix.

    Args:
        path: The file.
        device: Where it computes.
        threads: Computing threads of a call on a CPU.
        trust: Whether a program of PyTorch's may be read, which can run code that the file brings.

    Raises:
        InputError: If there is no such file, it cannot be used, or is a program that is not trusted.
    """
    suffix = Path(path).suffix
    if not Path(path).is_file():
        raise InputError(f'{path}: no such file')
    if suffix in PROGRAMS:
        if not trust:
            raise InputError(
                f'{path}: is a program, and reading it can run whatever it holds. If you know where it comes '
                'from, give --trust (trust=True in Python); .onnx files need none'
            )
        from .programs import ProgramNetwork

        return ProgramNetwork(path, device, threads)
    return (OnnxNetwork if suffix == '.onnx' else OpenVinoNetwork)(path, device, threads)
