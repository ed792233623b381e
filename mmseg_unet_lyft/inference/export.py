"""From a trained model to one file that takes uint8 frames and gives uint8 label maps."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.fx.experimental._config as symbolic
from mmseg.models.utils import resize
from torch import Tensor, nn

from .. import __version__
from ..datasets.labels import hood_spans
from ..errors import InputError
from ..evaluation.challenge import challenge_ids
from ..models.averaging import to_probabilities
from ..models.options import beyond_plain
from .exported import FORMAT, FRAMES, LABEL_MAP, MASKS, METADATA_KEY, first_line
from .network import TorchNetwork

# Of the frames that a network is traced with: none of 1, which torch takes for fixed, and odd.
_TRACED_SIZE = (2, 77, 101)
_SMALLEST_SIDE = 16
_OPSET = 18


class FrameNetwork(nn.Module):
    """A network with all that is around it: bytes in, class ids out.

    Where the classes have vehicles and road there is a second output, the challenge's masks, the ego hood
    included: of each pixel's class, or with ``mask_thresholds`` of the summed probabilities ``p >= t``.

    Args:
        network: The trained model.
        mask_thresholds: Of vehicle and road.
        for_torch: Whether PyTorch runs it: then in NHWC memory format, and by ``max``, as `TorchNetwork.ids`.

    Raises:
        InputError: If thresholds of masks are given and the classes have no road or no vehicle, or the
            network is applied with views, windows, padding or dropout.
    """

    def __init__(
        self,
        network: TorchNetwork,
        mask_thresholds: tuple[float, float] | None = None,
        for_torch: bool = False,
    ) -> None:
        super().__init__()
        self.for_torch = for_torch
        _require_plain(network)
        self.model = network.model
        self.network = network
        self.mask_thresholds = mask_thresholds
        side = 64
        with torch.no_grad():
            probe = self.model.decode_head(self.model.extract_feat(torch.zeros(1, 3, side, side)))
        self.is_full_size = tuple(probe.shape[2:]) == (side, side)
        try:
            self.mask_ids = challenge_ids(network.classes)
        except InputError:
            if mask_thresholds is not None:
                raise
            self.mask_ids = None

    @property
    def outputs(self) -> list[str]:
        """Names of what it gives."""
        return [LABEL_MAP] if self.mask_ids is None else [LABEL_MAP, MASKS]

    def forward(self, frames: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Class ids, uint8 (N, H, W), and the masks, uint8 (N, 2, H, W), of BGR frames uint8 (N, H, W, 3)."""
        images = frames.permute(0, 3, 1, 2).float()
        if self.network.is_rgb:
            images = images.flip(1)
        preprocessor = self.model.data_preprocessor
        if hasattr(preprocessor, 'mean'):
            images = (images - preprocessor.mean) / preprocessor.std
        if self.for_torch:
            images = images.to(memory_format=torch.channels_last)
        logits = self.model.decode_head(self.model.extract_feat(images))
        # Of a pyramid whose finest map is smaller than the frame; else nothing is resized.
        if not self.is_full_size:
            size = images.shape[2:]
            logits = resize(logits, size=size, mode='bilinear', align_corners=self.model.align_corners)
        if logits.shape[1] == 1:
            label_map = logits[:, 0].sigmoid() > self.model.decode_head.threshold
        else:
            divided = self.network.divided(logits)
            label_map = divided.max(1).indices if self.for_torch else divided.argmax(1)
        label_map = label_map.to(torch.uint8)
        if self.mask_ids is None:
            return label_map
        if self.mask_thresholds is None:
            masks = [torch.stack([label_map == one for one in ids]).any(0) for ids in self.mask_ids]
        else:
            shares = to_probabilities(logits)
            masks = [
                shares[:, list(ids)].sum(1) >= threshold
                for ids, threshold in zip(self.mask_ids, self.mask_thresholds, strict=True)
            ]
        return label_map, torch.stack(masks, dim=1).to(torch.uint8)


def _require_plain(network: TorchNetwork) -> None:
    """Raise an InputError if a network is applied in a way that an exported file does not know."""
    asked = [f'test_cfg.{key}' for key in beyond_plain(network.model.test_cfg)]
    if getattr(network.model.data_preprocessor, 'test_cfg', None):
        asked.append('data_preprocessor.test_cfg')
    if asked:
        raise InputError(
            f'{", ".join(asked)}: an exported file is the network alone, on whole frames; leave them out of '
            'the config, or use the checkpoint'
        )


@contextmanager
def _traceable(frame_network: FrameNetwork) -> Iterator[FrameNetwork]:
    """A copy of the network in plain memory format: a trace would fix sizes that the format is chosen by."""
    module = copy.deepcopy(frame_network).eval()
    if hasattr(module.model, 'memory_format'):
        module.model.memory_format = torch.contiguous_format
    module.model.to(memory_format=torch.contiguous_format)
    # torch.export warns of what it does not find (torchvision), the tracer of sizes that are compared: with
    # each other, which holds for every frame.
    registration = logging.getLogger('torch.onnx._internal.exporter._registration')
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            yield module
    finally:
        registration.setLevel(level)


def _frames() -> Tensor:
    return torch.zeros(*_TRACED_SIZE, 3, dtype=torch.uint8)


def to_program(frame_network: FrameNetwork) -> torch.export.ExportedProgram:
    """The network as torch.export's program; number and size of frames stay free.

    Raises:
        InputError: If this torch, or the network, cannot keep them free.
    """
    if not hasattr(symbolic, 'backed_size_oblivious'):
        raise InputError(f'torch {torch.__version__}: exporting needs torch 2.8; pip install "torch>=2.8"')
    side = getattr(frame_network.model.backbone, 'smallest_side', _SMALLEST_SIDE)
    number, height, width = (
        torch.export.Dim(name, min=least) for name, least in (('N', 1), ('H', side), ('W', side))
    )
    # Both: comparisons of sizes (is this map the skip map's size, or a row more?) become checks at run time,
    # and the smallest frame, whose deepest map is one pixel, is no case of its own.
    with _traceable(frame_network) as module, symbolic.patch(backed_size_oblivious=True):
        try:
            return torch.export.export(
                module,
                (_frames(),),
                dynamic_shapes=({0: number, 1: height, 2: width},),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f'this network does not take frames of every size ({first_line(error)}), so it cannot be '
                'exported; use its checkpoint'
            ) from error


def export_onnx(
    network: TorchNetwork, path: str | Path, mask_thresholds: tuple[float, float] | None = None
) -> Path:
    """Write a network as an ``.onnx`` file for `Segmenter`; number and size of frames stay free.

    The file labels frames at their own size: frames of another size than the network was trained at are
    to be resized before.

    Args:
        network: The trained model, on the CPU.
        path: The file.
        mask_thresholds: As in `FrameNetwork`.

    Raises:
        InputError: If onnx or onnxscript is not installed; otherwise as in `FrameNetwork`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx writes with it)
    except ImportError:
        raise InputError('writing ONNX needs onnx; install with: pip install onnx onnxscript') from None

    frame_network = FrameNetwork(network, mask_thresholds)
    program = to_program(frame_network)
    # Within, for the warnings.
    with _traceable(frame_network):
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[FRAMES],
            output_names=frame_network.outputs,
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
    model = written.model_proto
    # Nodes carry the source lines they come from, and so the paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata_of(network)})
    onnx.save(model, str(path))
    return Path(path)


def convert_to_openvino(onnx_path: str | Path, path: str | Path) -> Path:
    """Write an exported ``.onnx`` file as OpenVINO's ``.xml`` and ``.bin``, its metadata with it.

    Of a file from `quantisation` the weights stay float16 or int8.

    Args:
        onnx_path: As `export_onnx` writes it, or `quantisation`.
        path: The ``.xml`` file.

    Raises:
        InputError: If onnx or openvino is not installed.
    """
    try:
        import onnx
        import openvino
    except ImportError as error:
        raise InputError(
            f'writing OpenVINO needs {error.name}; install with: pip install openvino onnx'
        ) from None

    model = openvino.convert_model(str(onnx_path))
    (metadata,) = (
        entry.value for entry in onnx.load(str(onnx_path)).metadata_props if entry.key == METADATA_KEY
    )
    model.set_rt_info(metadata, [METADATA_KEY])
    # Converting widens float16 weights.
    is_half = json.loads(metadata).get('precision') == 'float16'
    openvino.save_model(model, str(path), compress_to_fp16=is_half)
    return Path(path)


def export_program(
    network: TorchNetwork, path: str | Path, mask_thresholds: tuple[float, float] | None = None
) -> Path:
    """Write a network as torch.export's ``.pt2`` program; arguments and errors as in `export_onnx`."""
    program = to_program(FrameNetwork(network, mask_thresholds, for_torch=True))
    for node in program.graph.nodes:
        # The source lines it comes from, and so the paths of this machine.
        node.meta.pop('stack_trace', None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.export.save(program, str(path), extra_files={METADATA_KEY: metadata_of(network)})
    return Path(path)


def export_torchscript(
    network: TorchNetwork, path: str | Path, mask_thresholds: tuple[float, float] | None = None
) -> Path:
    """Write a network as a traced TorchScript file; arguments and errors as in `export_onnx`.

    A legacy format: torch has declared it deprecated.
    """
    with _traceable(FrameNetwork(network, mask_thresholds, for_torch=True)) as module:
        traced = torch.jit.trace(module, _frames(), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={METADATA_KEY: metadata_of(network)})
    return Path(path)


def metadata_of(network: TorchNetwork) -> str:
    """What a reader of an exported file must know, as JSON."""
    fields = dict(
        format=FORMAT,
        version=__version__,
        precision='float32',
        classes=network.classes,
        palette=network.palette,
        scheme=network.scheme,
        data_sha256=network.data_sha256,
        colours='BGR',
        hood=None
        if network.hood is None
        else dict(spans=hood_spans(network.hood), size=list(network.hood.shape)),
    )
    return json.dumps(fields)
