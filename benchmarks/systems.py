"""What `model.py` compares: our network in every way of running it, mmseg's U-Net, and smp's."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from torch import Tensor, library, nn
from torch.nn import functional

from benchmarks.common import DEFAULT_CONFIG, save_random_weights
from mmseg_unet_lyft.engine.config import load_config
from mmseg_unet_lyft.engine.device import compile_parts, compile_problem
from mmseg_unet_lyft.inference.export import convert_to_openvino, export_onnx
from mmseg_unet_lyft.inference.segmenter import Segmenter
from mmseg_unet_lyft.inference.torch_model import TorchNetwork, build_model

EAGER, PLAIN, COMPILED = 'ours, eager', 'ours, eager, as built', 'ours, compiled'
ONNX, OPENVINO = 'ours, ONNX Runtime', 'ours, OpenVINO'
MMSEG, S5_D16 = 'mmseg UNet', 'mmseg UNet-S5-D16'
SMP_ENCODERS = ('mobilenet_v2', 'resnet18')
NUM_CLASSES = 13
# Four halvings; mmseg's decoder and smp's take no other sides.
DIVISOR = 16
# RGB, ImageNet's, as ours.
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_NOT_INSTALLED, _NOT_ASKED = 'not installed', 'not asked for'
# To write the file and to run it.
_NEEDED = {ONNX: ('onnx', 'onnxruntime'), OPENVINO: ('onnx', 'openvino')}
Call = Callable[[], object]
Labelling = Callable[[np.ndarray], np.ndarray]


class System(NamedTuple):
    """One of the systems, its model in evaluation mode on its device."""

    model: nn.Module
    # Of a model and normalised images, float (N, 3, H, W).
    logits: Callable[[nn.Module, Tensor], Tensor]
    # Class ids (H, W) of a BGR frame, uint8 (H, W, 3), by the system's own public API.
    label_map: Labelling
    # Of a model, images and data samples: what a training step goes back from.
    loss: Callable[[nn.Module, Tensor, list], Tensor]


def segmentor_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of an mmseg segmentor's network."""
    return model.decode_head(model.extract_feat(images))


def segmentor_loss(model: nn.Module, images: Tensor, samples: list) -> Tensor:
    """The sum of an mmseg segmentor's losses."""
    return model.parse_losses(model.loss(images, samples))[0]


def padded_side(side: int) -> int:
    """The next side that all systems take."""
    return -(-side // DIVISOR) * DIVISOR


@dataclass
class Own:
    """Our network with random weights, the device and threads of all ways, a folder for exported files."""

    config: Config  # Without class weights in the loss.
    checkpoint: str
    device: str
    threads: int
    folder: Path
    is_compiled: bool  # Whether to compile too.

    def segmenter(self, **given: object) -> Segmenter:
        """Our public API with the checkpoint."""
        return Segmenter(self.config, self.checkpoint, self.device, self.threads, **given)

    def system(self) -> System:
        """As `Segmenter` runs it."""
        segmenter = self.segmenter()
        return System(segmenter.network.model, segmentor_logits, labelling(segmenter), segmentor_loss)

    def trained(self) -> nn.Module:
        """A model to train, as our configs build it."""
        with DefaultScope.overwrite_default_scope('mmseg'):
            return MODELS.build(self.config.model).to(self.device)

    def compiling_problem(self) -> str | None:
        """Why nothing is compiled, None if it is."""
        return compile_problem(torch.device(self.device).type) if self.is_compiled else _NOT_ASKED


def make_own(size: tuple[int, int], base_channels: int, device: str, folder: Path, is_compiled: bool) -> Own:
    """Our network of a width, for frames of a (height, width), with random weights in a folder."""
    options = dict(base_channels=base_channels, image_scale_wh=size[::-1], class_weight=None)
    config = load_config(DEFAULT_CONFIG, options)
    checkpoint = save_random_weights(config, folder / 'random.pth')
    return Own(config, checkpoint, device, torch.get_num_threads(), folder, is_compiled)


def labelling(segmenter: Segmenter) -> Labelling:
    """From a BGR frame to its label map."""
    return lambda frame: segmenter(frame, colours='BGR')


def forward_ways(own: Own, images: Tensor) -> dict[str, Call | str]:
    """Our network alone on normalised images (N, 3, H, W), by way; the reason where one cannot run here."""
    network = TorchNetwork(own.config, own.checkpoint, own.device, own.threads)
    # As trained, without channels last, and batch norm on its own.
    plain = copy.deepcopy(own.config)
    plain.model.channels_last = False
    ways: dict[str, Call | str] = {
        EAGER: _inferred(network.model, images),
        PLAIN: _inferred(build_model(plain, own.checkpoint)[0].to(own.device), images),
        COMPILED: own.compiling_problem(),
    }
    if ways[COMPILED] is None:
        compiled = TorchNetwork(own.config, own.checkpoint, own.device, own.threads)
        compiled.compile()
        ways[COMPILED] = _inferred(compiled.model, images)
    path = own.folder / 'logits.onnx'
    for name in (ONNX, OPENVINO):
        ways[name] = exported_problem(name, own.device)
        if not ways[name]:
            if not path.is_file():
                _write_logits(network.model, path, images)
            ways[name] = _exported_logits(name, path, own.threads, images.numpy())
    return ways


def exported_problem(name: str, device: str) -> str | None:
    """Why an exported file cannot be run by `ONNX` or `OPENVINO` here, None if it can."""
    if device != 'cpu':
        return 'measured on the CPU only'
    missing = [package for package in _NEEDED[name] if find_spec(package) is None]
    return f'{_NOT_INSTALLED} ({", ".join(missing)})' if missing else None


def _inferred(model: nn.Module, images: Tensor) -> Call:
    return torch.inference_mode()(lambda: segmentor_logits(model, images))


class _Logits(nn.Module):
    """Backbone and head, as a graph takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return segmentor_logits(self.model, images)


def _write_logits(model: nn.Module, path: Path, images: Tensor) -> None:
    """Write a file that ends at the logits; number and size of images stay free, as in our own files."""
    free = {0: 'N', 2: 'H', 3: 'W'}
    with warnings.catch_warnings(), torch.inference_mode():
        # Of the tracer, as when we export.
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


def _exported_logits(name: str, path: Path, threads: int, images: np.ndarray) -> Call:
    """ONNX Runtime or OpenVINO on the file of `_write_logits`."""
    if name == ONNX:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        return lambda: session.run(None, dict(images=images))[0]
    import openvino

    settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=threads)
    compiled = openvino.Core().compile_model(openvino.convert_model(str(path)), 'CPU', settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([images])[0]


def label_map_ways(own: Own) -> dict[str, Labelling | str]:
    """`Segmenter` on a BGR frame, by what it is given; the reason where one cannot run here."""
    ways: dict[str, Labelling | str] = {EAGER: labelling(own.segmenter())}
    ways[COMPILED] = own.compiling_problem() or labelling(own.segmenter(compiled=True))
    for name in (ONNX, OPENVINO):
        ways[name] = exported_problem(name, own.device)
    for name, path in export_files(own).items():
        ways[name] = labelling(Segmenter(path, None, own.device, own.threads))
    return ways


def export_files(own: Own) -> dict[str, str]:
    """Paths of our network's exported files that can be run here, by way, next to its weights."""
    path = own.folder / 'unet.onnx'
    places = {ONNX: path, OPENVINO: path.with_suffix('.xml')}
    found = {name: str(place) for name, place in places.items() if not exported_problem(name, own.device)}
    if found and not path.is_file():
        export_onnx(TorchNetwork(own.config, own.checkpoint), path)
        if OPENVINO in found:
            convert_to_openvino(path, places[OPENVINO])
    return found


def training_ways(own: Own) -> dict[str, nn.Module | str]:
    """Models of ours to train: eager, compiled; the reason where one cannot run here."""
    problem = own.compiling_problem()
    ways: dict[str, nn.Module | str] = {EAGER: own.trained(), COMPILED: problem or own.trained()}
    if not problem:
        compile_parts(ways[COMPILED])
    return ways


def mmseg_config(base_channels: int, is_default: bool = False) -> Config:
    """mmseg's own U-Net of five stages with an FCN head, of a width (64 in mmseg's), with batch norm.

    Ours has neither the auxiliary head nor the dropout that mmseg trains it with: only the default has them.
    """
    folder = Path(find_spec('mmseg').origin).parent / '.mim/configs/_base_/models'
    model = Config.fromfile(folder / 'fcn_unet_s5-d16.py').model
    model.data_preprocessor.update(size_divisor=DIVISOR, test_cfg=dict(size_divisor=DIVISOR))
    model.test_cfg = dict(mode='whole')
    norm = dict(type='BN', requires_grad=True)
    model.backbone.update(base_channels=base_channels, norm_cfg=norm)
    for head, times in ((model.decode_head, 1), (model.auxiliary_head, 2)):
        channels = dict(in_channels=times * base_channels, channels=base_channels)
        head.update(num_classes=NUM_CLASSES, norm_cfg=norm, **channels)
        # Over the valid pixels, as ours; mmseg's default divides by all.
        head.loss_decode.avg_non_ignore = True
    if not is_default:
        model.decode_head.dropout_ratio = 0.0
        del model['auxiliary_head']
    # Nothing is resized: frames are labelled at their own size, as by ours.
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    return Config(dict(model=model, test_pipeline=pipeline))


def mmseg_system(config: Config, device: str) -> System:
    """mmseg's, applied by ``mmseg.apis``, with random weights."""
    model = init_model(config.copy(), device=device)
    return System(
        model,
        segmentor_logits,
        lambda frame: inference_model(model, frame).pred_sem_seg.data[0].cpu().numpy(),
        segmentor_loss,
    )


def smp_systems(device: str, folder: Path | None = None) -> dict[str, System | str]:
    """segmentation_models.pytorch's Unet by name; the reason where it cannot be imported.

    The folder, where else to look, is not to be in ``PYTHONPATH``: mmseg imports timm and, through it,
    torchvision where it finds them, and fails on one without its binary.
    """
    names = {f'smp Unet {encoder}': encoder for encoder in SMP_ENCODERS}
    if folder is not None and str(folder) not in sys.path:
        # Last: what is installed goes first.
        sys.path.append(str(folder))
    if find_spec('segmentation_models_pytorch') is None:
        return dict.fromkeys(names, _NOT_INSTALLED)
    _declare_torchvision_operators()
    try:
        import segmentation_models_pytorch as smp
    except (ImportError, RuntimeError) as error:
        return dict.fromkeys(names, f'{_NOT_INSTALLED} ({str(error).splitlines()[0]})')
    return {
        name: smp_system(smp.Unet(encoder, encoder_weights=None, classes=NUM_CLASSES), device)
        for name, encoder in names.items()
    }


# A library takes its declarations away when it is collected.
_KEPT: list[library.Library] = []


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported where its binary is missing, or is made for another PyTorch.

    At import it describes operators that only its binary makes; smp uses none of them.
    """
    found = find_spec('torchvision')
    if found is None or _KEPT:
        return
    folder = Path(found.origin).parent
    for binary in folder.glob('_C.*'):
        with suppress(OSError):
            torch.ops.load_library(str(binary))
            return
    text = (folder / '_meta_registrations.py').read_text(encoding='utf-8')
    _KEPT.append(library.Library('torchvision', 'DEF'))
    for name in set(re.findall(r'(?:register_meta\("|register_fake\("torchvision::)(\w+)', text)):
        _KEPT[0].define(f'{name}() -> ()')


def smp_system(model: nn.Module, device: str) -> System:
    """One of them, with the shortest code from a frame to ids, since it has no API of its own for that."""
    model = model.to(device).eval()
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))

    def label_map(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).to(device).permute(2, 0, 1)
            image = image.float().sub_(mean).div_(std)[None]
            sides = (0, padded_side(width) - width, 0, padded_side(height) - height)
            logits = model(functional.pad(image, sides))
            return logits[0, :, :height, :width].argmax(0).to(torch.uint8).cpu().numpy()

    def loss(network: nn.Module, images: Tensor, samples: list) -> Tensor:
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        return functional.cross_entropy(network(images), labels, ignore_index=255)

    return System(model, lambda network, images: network(images), label_map, loss)
