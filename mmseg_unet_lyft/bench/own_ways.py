"""The ways in which our network can be run: eager, compiled, exported; as logits and as label maps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
    for name, make in ((ONNX, _onnx_logits), (OPENVINO, _openvino_logits)):
        try:
            ways[name] = make(network, path, images)
        except ImportError as error:
            ways[name] = f'{NOT_INSTALLED} ({error.name})'
    return ways


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


def _onnx_logits(network: TorchNetwork, path: Path, images: Tensor) -> Call | str:
    """ONNX Runtime on a file that ends at the logits; its number and size of images stay free, as ours."""
    import onnx  # noqa: F401  (the exporter asks for it only once it has traced)
    import onnxruntime

    free = {0: 'N', 2: 'H', 3: 'W'}
    with warnings.catch_warnings(), torch.inference_mode():
        # Of the tracer, as in `inference.export`.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            _Logits(copy.deepcopy(network.model).cpu()).eval(),
            (images.cpu(),),
            str(path),
            input_names=['images'],
            output_names=['logits'],
            dynamic_axes=dict(images=free, logits=free),
            opset_version=18,
            dynamo=False,
        )
    provider = 'CPUExecutionProvider' if network.device == 'cpu' else 'CUDAExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        return 'this onnxruntime knows no CUDA'
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = network.threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    numbers = images.cpu().numpy()
    return lambda: session.run(None, dict(images=numbers))[0]


def _openvino_logits(network: TorchNetwork, path: Path, images: Tensor) -> Call | str:
    """OpenVINO on the file of `_onnx_logits`."""
    import openvino

    if network.device != 'cpu':
        return 'runs on the CPU'
    model = openvino.convert_model(str(path))
    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=network.threads)
    request = openvino.Core().compile_model(model, 'CPU', settings).create_infer_request()
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
    for name, path in exported.items():
        is_here = own.device == 'cpu' or name == ONNX
        ways[name] = labelling(Segmenter(path, device=own.device, threads=own.threads)) if is_here else _CPU
    return ways


_CPU = 'runs on the CPU'


def export_files(own: Own) -> dict[str, str]:
    """Paths of our network's exported files by way, in the folder of its weights."""
    network = TorchNetwork(own.config, own.checkpoint)
    path = own.folder / 'unet.onnx'
    if not path.is_file():
        export_onnx(network, path)
        convert_to_openvino(path, path.with_suffix('.xml'))
    return {ONNX: str(path), OPENVINO: str(path.with_suffix('.xml'))}


def training_ways(own: Own) -> dict[str, nn.Module | str]:
    """Models of ours to train: eager, compiled; instead of one, why it cannot be had."""
    ways: dict[str, nn.Module | str] = {EAGER: own.trained()}
    problem = own.compiling_problem()
    ways[COMPILED] = problem or own.trained()
    if not problem:
        compile_parts(ways[COMPILED])
    return ways
