"""The ways in which our network can be run: eager, compiled, exported; as logits and as label maps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..engine.compiling import compile_parts, compile_problem
from ..engine.config import load_config
from ..inference.building import build_model
from ..inference.export import convert_to_openvino, export_onnx
from ..inference.network import TorchNetwork
from ..inference.segmenter import Segmenter
from .rivals import NOT_INSTALLED, System, segmentor_logits, segmentor_loss
from .subject import DEFAULT_CONFIG, save_random_weights

EAGER, PLAIN, COMPILED, ONNX, OPENVINO = (
    'ours, eager',
    'ours, eager, as built',
    'ours, compiled',
    'ours, ONNX Runtime',
    'ours, OpenVINO',
)
# To write the file and to run it.
_NEEDED = {ONNX: ('onnx', 'onnxruntime'), OPENVINO: ('onnx', 'openvino')}
_CUDA_PROVIDER = 'CUDAExecutionProvider'
_NOT_ASKED = 'not asked for'
Call = Callable[[], object]


@dataclass
class Own:
    """Our network with random weights.

    Attributes:
        config: Without class weights in the loss.
        checkpoint: Of it.
        device: Where it computes.
        threads: Computing threads of all ways.
        folder: Where exported files go.
        is_compiled: Whether to compile too.
    """

    config: Config
    checkpoint: str
    device: str
    threads: int
    folder: Path
    is_compiled: bool

    def system(self) -> System:
        """As `Segmenter` runs it."""
        segmenter = Segmenter(self.config, self.checkpoint, self.device, self.threads)
        return System(
            EAGER,
            segmenter.network.model,
            segmentor_logits,
            lambda frame: segmenter(frame, colours='BGR'),
            segmentor_loss,
        )

    def trained(self) -> nn.Module:
        """A model to train, as our configs build it."""
        with DefaultScope.overwrite_default_scope('mmseg'):
            return MODELS.build(self.config.model).to(self.device)

    def compiling_problem(self) -> str | None:
        """Why nothing is compiled, None if it is."""
        return compile_problem(torch.device(self.device).type) if self.is_compiled else _NOT_ASKED


def make_own(size: tuple[int, int], base_channels: int, device: str, folder: Path, is_compiled: bool) -> Own:
    """Our network of a width, for frames of a (height, width), with random weights in a folder."""
    knobs = dict(base_channels=base_channels, image_scale_wh=size[::-1], class_weight=None)
    config = load_config(DEFAULT_CONFIG, knobs)
    checkpoint = save_random_weights(config, folder / 'random.pth')
    return Own(config, checkpoint, device, torch.get_num_threads(), folder, is_compiled)


def forward_ways(own: Own, images: Tensor) -> dict[str, Call | str]:
    """Our network alone on normalised images (N, 3, H, W), by way; instead of a way, why it cannot be had."""
    ways: dict[str, Call | str] = {}
    network = TorchNetwork(own.config, own.checkpoint, own.device, own.threads)
    ways[EAGER] = _inferred(network.model, images)
    # As trained and without channels last, batch norm on its own.
    plain = copy.deepcopy(own.config)
    plain.model.channels_last = False
    ways[PLAIN] = _inferred(build_model(plain, own.checkpoint)[0].to(own.device), images)
    problem = own.compiling_problem()
    if problem:
        ways[COMPILED] = problem
    else:
        compiled = TorchNetwork(own.config, own.checkpoint, own.device, own.threads)
        compiled.compile()
        ways[COMPILED] = _inferred(compiled.model, images)
    path = own.folder / 'logits.onnx'
    for name, opened in ((ONNX, _onnx_logits), (OPENVINO, _openvino_logits)):
        reason = exported_problem(name, own.device)
        if not reason and not path.is_file():
            _write_logits(network.model, path, images)
        ways[name] = reason or opened(path, own.threads, own.device, images)
    return ways


def exported_problem(name: str, device: str) -> str | None:
    """Why an exported file cannot be run by `ONNX` or `OPENVINO` here, None if it can."""
    if name == OPENVINO and device != 'cpu':
        return 'runs on the CPU'
    missing = [package for package in _NEEDED[name] if find_spec(package) is None]
    if missing:
        return f'{NOT_INSTALLED} ({", ".join(missing)})'
    if name == ONNX and device != 'cpu':
        import onnxruntime

        if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
            return 'this onnxruntime knows no CUDA'
    return None


def _inferred(model: nn.Module, images: Tensor) -> Call:
    def run() -> Tensor:
        with torch.inference_mode():
            return segmentor_logits(model, images)

    return run


class _Logits(nn.Module):
    """Backbone and head, as a graph takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return segmentor_logits(self.model, images)


def _write_logits(model: nn.Module, path: Path, images: Tensor) -> None:
    """Write a file that ends at the logits; its number and size of images stay free, as of our own files."""
    free = {0: 'N', 2: 'H', 3: 'W'}
    with warnings.catch_warnings(), torch.inference_mode():
        # Of the tracer, as in `inference.export`.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            _Logits(copy.deepcopy(model).cpu()).eval(),
            (images.cpu(),),
            str(path),
            input_names=['images'],
            output_names=['logits'],
            dynamic_axes=dict(images=free, logits=free),
            opset_version=18,
            dynamo=False,
        )


def _onnx_logits(path: Path, threads: int, device: str, images: Tensor) -> Call:
    """ONNX Runtime on the file of `_write_logits`; on a GPU it copies images and logits too."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    provider = 'CPUExecutionProvider' if device == 'cpu' else _CUDA_PROVIDER
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    numbers = images.cpu().numpy()
    return lambda: session.run(None, dict(images=numbers))[0]


def _openvino_logits(path: Path, threads: int, device: str, images: Tensor) -> Call:
    """OpenVINO on the file of `_write_logits`."""
    import openvino

    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=threads)
    compiled = openvino.Core().compile_model(openvino.convert_model(str(path)), device.upper(), settings)
    request = compiled.create_infer_request()
    numbers = images.numpy()
    return lambda: request.infer([numbers])[0]


def label_map_ways(own: Own) -> dict[str, Callable[[np.ndarray], np.ndarray] | str]:
    """`Segmenter` on a BGR frame, by what it is given; instead of a way, why it cannot be had."""
    ways: dict[str, Callable[[np.ndarray], np.ndarray] | str] = {}

    def labelling(segmenter: Segmenter) -> Callable[[np.ndarray], np.ndarray]:
        return lambda frame: segmenter(frame, colours='BGR')

    place = (own.device, own.threads)
    ways[EAGER] = labelling(Segmenter(own.config, own.checkpoint, *place))
    problem = own.compiling_problem()
    ways[COMPILED] = problem or labelling(Segmenter(own.config, own.checkpoint, *place, compiled=True))
    exported = export_files(own)
    for name in (ONNX, OPENVINO):
        ways[name] = exported_problem(name, own.device) or labelling(Segmenter(exported[name], None, *place))
    return ways


def export_files(own: Own) -> dict[str, str]:
    """Paths of our network's exported files that can be run here, by way, in the folder of its weights."""
    path = own.folder / 'unet.onnx'
    found = {ONNX: path, OPENVINO: path.with_suffix('.xml')}
    found = {name: place for name, place in found.items() if not exported_problem(name, own.device)}
    if found and not path.is_file():
        export_onnx(TorchNetwork(own.config, own.checkpoint), path)
        if OPENVINO in found:
            convert_to_openvino(path, found[OPENVINO])
    return {name: str(place) for name, place in found.items()}


def training_ways(own: Own) -> dict[str, nn.Module | str]:
    """Models of ours to train: eager, compiled; instead of one, why it cannot be had."""
    ways: dict[str, nn.Module | str] = {EAGER: own.trained()}
    problem = own.compiling_problem()
    ways[COMPILED] = problem or own.trained()
    if not problem:
        compile_parts(ways[COMPILED])
    return ways
