"""From a trained model to one file that takes uint8 frames and gives uint8 label maps."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from mmseg.models.utils import resize
from torch import Tensor, nn

from .. import __version__
from ..datasets.labels import hood_spans
from ..errors import InputError
from ..evaluation.challenge import challenge_ids
from ..models.averaging import to_probabilities
from .exported import FORMAT, FRAMES, LABEL_MAP, MASKS, METADATA_KEY
from .network import TorchNetwork


class FrameNetwork(nn.Module):
    """A network with all that is around it: bytes in, class ids out.

    Args:
        network: The trained model.
        mask_thresholds: With ``(vehicle, road)`` there is a second output, the challenge's masks
            ``p >= threshold``; probabilities of road and road lines are added.

    Raises:
        InputError: If masks are asked for and the classes have no road or no vehicle, or the network is
            applied with views, windows, padding or dropout.
    """

    def __init__(self, network: TorchNetwork, mask_thresholds: tuple[float, float] | None = None) -> None:
        super().__init__()
        _require_plain(network)
        self.model = network.model
        self.network = network
        self.mask_thresholds = mask_thresholds
        side = 64
        with torch.no_grad():
            probe = self.model.decode_head(self.model.extract_feat(torch.zeros(1, 3, side, side)))
        self.is_full_size = tuple(probe.shape[2:]) == (side, side)
        if mask_thresholds is not None:
            self.mask_ids = challenge_ids(network.classes)

    def forward(self, frames: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Class ids, uint8 (N, H, W), and the masks, uint8 (N, 2, H, W), of BGR frames uint8 (N, H, W, 3)."""
        images = frames.permute(0, 3, 1, 2).float()
        if self.network.is_rgb:
            images = images.flip(1)
        preprocessor = self.model.data_preprocessor
        if hasattr(preprocessor, 'mean'):
            images = (images - preprocessor.mean) / preprocessor.std
        logits = self.model.decode_head(self.model.extract_feat(images))
        # Of a pyramid whose finest map is smaller than the frame; else nothing is resized.
        if not self.is_full_size:
            size = images.shape[2:]
            logits = resize(logits, size=size, mode='bilinear', align_corners=self.model.align_corners)
        # `argmax`, not `max` as in `TorchNetwork.ids`: an operator of ONNX.
        label_map = (
            (logits[:, 0].sigmoid() > self.model.decode_head.threshold)
            if logits.shape[1] == 1
            else self.network.divided(logits).argmax(1)
        ).to(torch.uint8)
        if self.mask_thresholds is None:
            return label_map
        shares = to_probabilities(logits)
        masks = [
            shares[:, list(ids)].sum(1) >= threshold
            for ids, threshold in zip(self.mask_ids, self.mask_thresholds, strict=True)
        ]
        return label_map, torch.stack(masks, dim=1).to(torch.uint8)


def _require_plain(network: TorchNetwork) -> None:
    """Raise an InputError if a network is applied in a way that an exported file does not know."""
    applied = network.model.test_cfg or {}
    padding = getattr(network.model.data_preprocessor, 'test_cfg', None)
    beyond = dict(
        scales=tuple(applied.get('scales') or (1.0,)) != (1.0,),
        flip=bool(applied.get('flip')),
        mode=applied.get('mode', 'whole') != 'whole',
        passes=network.passes > 1,
    )
    asked = [f'test_cfg.{key}' for key, is_asked in beyond.items() if is_asked]
    asked += ['data_preprocessor.test_cfg'] if padding else []
    if asked:
        raise InputError(
            f'{", ".join(asked)}: an exported file is the network alone, on whole frames; leave them out of '
            'the config, or use the checkpoint'
        )


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
        InputError: If onnx is not installed; otherwise as in `FrameNetwork`.
    """
    try:
        import onnx
    except ImportError:
        raise InputError('writing ONNX needs onnx; install with: pip install onnx onnxscript') from None

    path = Path(path)
    frames = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
    outputs = [LABEL_MAP] if mask_thresholds is None else [LABEL_MAP, MASKS]
    free = {0: 'N', 1: 'H', 2: 'W'}
    with warnings.catch_warnings(), torch.inference_mode():
        # Of the tracer: sizes that the network compares are compared for this frame alone, which is so.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            FrameNetwork(network, mask_thresholds).eval(),
            (frames,),
            str(path),
            input_names=[FRAMES],
            output_names=outputs,
            dynamic_axes={FRAMES: free, LABEL_MAP: free, MASKS: {0: 'N', 2: 'H', 3: 'W'}},
            opset_version=18,
            dynamo=False,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(_metadata(network))})
    onnx.save(model, str(path))
    return path


def convert_to_openvino(onnx_path: str | Path, path: str | Path) -> Path:
    """Write an exported ``.onnx`` file as OpenVINO's ``.xml`` and ``.bin``, its metadata with it.

    Of a file from `quantisation` the weights stay float16 or int8.
    """
    import onnx
    import openvino

    model = openvino.convert_model(str(onnx_path))
    (metadata,) = (
        entry.value for entry in onnx.load(str(onnx_path)).metadata_props if entry.key == METADATA_KEY
    )
    model.set_rt_info(metadata, [METADATA_KEY])
    # Converting widens float16 weights.
    is_half = json.loads(metadata).get('precision') == 'float16'
    openvino.save_model(model, str(path), compress_to_fp16=is_half)
    return Path(path)


def _metadata(network: TorchNetwork) -> dict:
    """What a reader of the file must know."""
    return dict(
        format=FORMAT,
        version=__version__,
        classes=network.classes,
        palette=network.palette,
        colours='BGR',
        hood=None
        if network.hood is None
        else dict(spans=hood_spans(network.hood), size=list(network.hood.shape)),
    )
