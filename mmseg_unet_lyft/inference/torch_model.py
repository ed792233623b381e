"""A checkpoint's model in PyTorch as `Segmenter` uses it, saved alone or in a folder; exports in tests."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmcv.transforms import Resize
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import stack_batch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import __version__
from ..compat import register_classes
from ..datasets.carla import get_scheme
from ..datasets.files import write_json, write_whole
from ..datasets.layout import leaf_datasets
from ..engine.checkpoint import (
    KEPT,
    SAFETENSORS,
    SAFETENSORS_FORMAT,
    card_file,
    check_weights,
    load_weights,
    pack_weights,
    read_checkpoint,
    weights_of,
)
from ..engine.config import load_config
from ..engine.device import compile_for_inference
from ..engine.model_spec import FORMAT as DESCRIPTION_FORMAT
from ..engine.model_spec import KEY, checked, describe, image_steps, inference_part, scheme_of
from ..engine.run_card import count_gflop, read_card
from ..errors import InputError
from ..models.predict_modes import (
    at_size,
    check_dropout,
    entropy,
    monte_carlo,
    to_labels,
    to_logits,
    to_probabilities,
)
from ..models.preprocessor import normalise
from ..models.segmentor import beyond_plain
from ..processes import this_process
from ..report.model_card import card_of
from ..report.run_page import describe_card
from . import WEIGHTS_NAME
from .runtimes import Classes, Resizing, check_size, checked_classes, first_line, open_exported

_REMEDY = 'name the config it was trained with before it'
# What wrong arguments raise in layers; in a described model they are the file's fault.
_BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError)
_BUILD_ERRORS += (RuntimeError, TypeError, ValueError)


def fold_norms(model: BaseSegmentor) -> BaseSegmentor:
    """Fold an evaluation-mode model's batch norms into its convolutions, if that leaves its logits as is."""
    if not any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        return model
    # mmcv assumes that a norm follows the convolution registered before it, which need not be so: logits on
    # random numbers decide.
    folded = fuse_conv_bn(copy.deepcopy(model))
    # Large enough for any pyramid here, and quick.
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, found = (one.decode_head(one.extract_feat(images)) for one in (model, folded))
    # float32's rounding through some 30 layers, as a share of the largest logit.
    is_same = (plain - found).abs().max() <= 1e-4 * plain.abs().max().clamp(min=1)
    return folded if is_same else model


def build_model(
    config: Config | str | None, path: str, trust: bool = False
) -> tuple[BaseSegmentor, list[Any], Classes]:
    """A checkpoint's model with its weights, on the CPU, in evaluation mode; its image steps; its classes.

    Without a config, path or name, the checkpoint must describe its model; ``trust`` as in `read_checkpoint`.

    Raises:
        InputError: If config or checkpoint cannot be read, or do not belong together.
    """
    content = read_checkpoint(path, trust=trust)
    meta = _mapping(content.get('meta'))
    weights = weights_of(content, path)
    # An auxiliary head is not built.
    weights = {name: weight for name, weight in weights.items() if not name.startswith('auxiliary_head.')}
    if config is None:
        described = checked(meta.get(KEY), path)
        model_config, steps, scheme = described['model'], described['steps'], described['scheme']
        _require_buildable(model_config, steps, weights, path)
        named = get_scheme(scheme).metainfo if scheme else None
    else:
        config = config if isinstance(config, Config) else load_config(config)
        model_config, steps, scheme = inference_part(config.model), image_steps(config), scheme_of(config)
        named = _named_by_config(config)
    model, transforms = build(model_config, steps)
    check_weights(model, weights, path)
    load_weights(model, weights, path)
    described = meta.get(KEY) if isinstance(meta.get(KEY), dict) else {}
    fields = meta.get('dataset_meta') or named
    fields = dict(fields if isinstance(fields, Mapping) else {}, data_sha256=described.get('data_sha256'))
    fields.setdefault('scheme', scheme)
    classes = checked_classes(fields, path, _REMEDY)
    if len(classes.names) != model.num_classes:
        raise InputError(
            f'{path}: names {len(classes.names)} classes, its model has {model.num_classes}; {_REMEDY}'
        )
    return model.eval(), transforms, classes


def build(model_config: Mapping, steps: Sequence[Mapping] = ()) -> tuple[BaseSegmentor, list[Any]]:
    """Model and transforms as mmseg builds them."""
    register_classes()
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(copy.deepcopy(model_config)))
        return model, [TRANSFORMS.build(dict(step)) for step in steps]


def _require_buildable(
    model_config: Mapping, steps: Sequence[Mapping], weights: dict[str, Tensor], path: str
) -> None:
    """Raise an InputError unless what a file describes can be built and has exactly the file's weights."""
    try:
        # Without memory for the weights: a description can ask for any number of channels.
        with torch.device('meta'):
            model, _ = build(model_config, steps)
        if not isinstance(model, BaseSegmentor):
            raise TypeError(f'{type(model).__name__} is not a segmentor')
    except _BUILD_ERRORS as error:
        reason = f'{type(error).__name__}: {error}'.strip().splitlines()[-1]
        raise InputError(
            f'{path}: its description of the model cannot be built ({reason}); {_REMEDY}'
        ) from error
    check_weights(model, weights, path)


def _named_by_config(config: Config) -> Mapping | None:
    """Classes and palette of what a config tests on, None if it does not say."""
    scheme = scheme_of(config)
    if isinstance(scheme, str):
        return get_scheme(scheme).metainfo
    dataset = (config.get('test_dataloader') or {}).get('dataset', {})
    register_classes()
    with DefaultScope.overwrite_default_scope('mmseg'):
        kind = DATASETS.get(dataset.get('type')) if isinstance(dataset.get('type'), str) else None
    return dataset.get('metainfo') or getattr(kind, 'METAINFO', None)


def describe_model(
    config: Config | None, checkpoint: str | None, size: tuple[int, int], trust: bool = False
) -> Iterator[str]:
    """Lines on the model of a config, a checkpoint or both: network, cost, classes, training, config.

    GFLOP are of one pass at the network's input, (height, width). An InputError as of `build_model`.
    """
    facts, text = {}, config and config.pretty_text
    if checkpoint is None:
        try:
            model, steps = build(inference_part(config.model), image_steps(config))
        except _BUILD_ERRORS as error:
            raise InputError(f'{config.filename}: its model cannot be built ({error})') from error
        scheme, names = scheme_of(config), (_named_by_config(config) or {}).get('classes', ())
    else:
        model, steps, classes = build_model(config, checkpoint, trust)
        scheme, names = classes.scheme, classes.names
        if card_file(Path(checkpoint)).is_file():
            card = read_card(Path(checkpoint))
            miou = (card.get('validation') or {}).get('mIoU')
            scored = 'not validated' if miou is None else f'validation mIoU {miou:.4g}'
            facts = dict(trained=f'{card["step"]} steps, {scored}') | describe_card(card)
            text = card['config'].get('text')
    network = ' and '.join(type(part).__name__ for part in (model.backbone, model.decode_head))
    facts = {
        'model': checkpoint or config.filename,
        'network': f'{type(model).__name__} of {network}',
        'parameters': f'{sum(weight.numel() for weight in model.parameters()):,}',
        'GFLOP': f'{count_gflop(model, size):.3g} for {size[0]}x{size[1]} (height x width)',
        'classes': f'{len(names)}{f", scheme {scheme}" if scheme else ""}: {", ".join(names)}',
        'frames': ', '.join(map(repr, steps)) or 'as they are',
    } | facts
    yield from (f'{name}: {value}' for name, value in facts.items())
    if text:
        yield from ('resolved config:', *text.rstrip().split('\n'))


class TorchNetwork:
    """A checkpoint's model on a device, with the image steps of its test pipeline.

    ``resizes`` are the steps if they only resize, as an exported file does it; None if they do anything else.
    Arguments and errors as in `build_model` and `Segmenter`.
    """

    gives_probabilities = True

    def __init__(
        self,
        config: Config | str | None,
        checkpoint: str,
        device: str = 'cpu',
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        model, self.steps, classes = build_model(config, checkpoint, trust)
        try:
            self.model = fold_norms(model).to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f'--device {device}: {first_line(error)}; choose cpu, cuda or cuda:N') from error
        self.path, self.device, self.threads = checkpoint, device, threads
        self.resizes = _resizes_of(self.steps)
        self.smallest_side = getattr(self.model.backbone, 'smallest_side', 1)
        self.classes, self.palette, self.hood = classes.names, classes.palette, classes.hood
        self.scheme, self.data_sha256 = classes.scheme, classes.data_sha256
        test_cfg = self.model.test_cfg or {}
        self.thresholds, self.passes = test_cfg.get('thresholds'), test_cfg.get('passes') or 1

    def compile(self) -> None:
        """Compile the network at its next call, for each size of frames; errors as in `Segmenter.compile`."""
        compile_for_inference(self.model, self.device)

    @torch.inference_mode()
    def label_maps(self, frames: np.ndarray, colours: str) -> np.ndarray:
        """Class ids, uint8 (N, H, W), of frames uint8 (N, H, W, 3)."""
        return self.ids(self._logits_of(frames, colours)).cpu().numpy()

    @torch.inference_mode()
    def labels_and_probabilities(self, frames: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and probabilities, float32 (N, C, H, W), of one pass."""
        logits = self._logits_of(frames, colours)
        return self.ids(logits).cpu().numpy(), to_probabilities(logits).cpu().numpy()

    def check_passes(self, passes: int) -> None:
        """Raise an InputError for several passes of a network without dropout."""
        if passes > 1:
            check_dropout(self.model)

    @torch.inference_mode()
    def uncertainty(
        self, frames: np.ndarray, colours: str, passes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class ids, uint8 (N, H, W), and entropy, nats, float32 (N, H, W), of Monte-Carlo dropout."""
        logits = self._logits_of(frames, colours, passes, seed)
        return self.ids(logits).cpu().numpy(), entropy(to_probabilities(logits)).cpu().numpy()

    def _logits_of(
        self, frames: np.ndarray, colours: str, passes: int | None = None, seed: int = 0
    ) -> Tensor:
        size = frames.shape[1:3]
        check_size(self, size)
        try:
            return self.logits(self.inputs(frames, colours), size, passes, seed)
        except (RuntimeError, AssertionError, cv2.error) as error:
            raise InputError(
                f'{self.path}: does not take frames of {size[0]}x{size[1]} ({first_line(error)})'
            ) from error

    def inputs(self, frames: np.ndarray, colours: str) -> Tensor:
        """The network's input: floats (N, 3, H, W) on the device, after the image steps, normalised."""
        if self.threads and torch.get_num_threads() != self.threads:
            # Sets the calling thread's number; others keep theirs.
            torch.set_num_threads(self.threads)
        stepped = torch.from_numpy(np.stack([self._step(frame) for frame in frames]))
        images = stepped.to(self.device).permute(0, 3, 1, 2)
        images = images.flip(1) if colours == 'RGB' else images
        return normalise(self.model.data_preprocessor, images.float())

    def _step(self, frame: np.ndarray) -> np.ndarray:
        results = dict(img=frame, img_shape=frame.shape[:2], ori_shape=frame.shape[:2])
        for step in self.steps:
            results = step(results)
        return results['img']

    def logits(
        self, images: Tensor, size: tuple[int, int], passes: int | None = None, seed: int = 0
    ) -> Tensor:
        """Logits, float (N, out_channels, H, W), of `inputs` at the frames' (height, width).

        With several ``passes`` (default: the config's), logits of the mean over passes with active dropout.
        """
        size, network_size = tuple(size), tuple(images.shape[2:])
        padded, padding = images, getattr(self.model.data_preprocessor, 'test_cfg', None)
        if padding:
            padded, _ = stack_batch(list(images), pad_val=self.model.data_preprocessor.pad_val, **padding)
        meta = dict(ori_shape=size, img_shape=network_size, pad_shape=tuple(padded.shape[2:]))
        metas = [dict(meta) for _ in images]
        passes = self.passes if passes is None else passes
        if passes > 1:
            shares = monte_carlo(self.model, padded, metas, passes, seed)
            logits = to_logits(shares, self.model.out_channels)
        else:
            logits = self.model.inference(padded, metas)
        return at_size(logits[:, :, : network_size[0], : network_size[1]], size, self.model.align_corners)

    def ids(self, logits: Tensor) -> Tensor:
        """Class ids, uint8 (N, H, W), of logits (N, out_channels, H, W)."""
        return to_labels(logits, self.model.decode_head.threshold, self.thresholds)


def _resizes_of(steps: Sequence[Any]) -> list[Resizing] | None:
    """What the steps do if they are no more than one of OpenCV's bilinear resizes to a scale, else None."""
    plain = ('cv2', 'bilinear')
    are_plain = [
        isinstance(one, Resize) and one.scale and (one.backend, one.interpolation) == plain for one in steps
    ]
    return [(one.scale, one.keep_ratio) for one in steps] if len(steps) < 2 and all(are_plain) else None


@MODELS.register_module()
class LyftExportedSegmentor(BaseModel):
    """A network in an exported file, for test runs: samples with their label maps, and no loss.

    It takes batches as loaders give them: BGR bytes of the frames' own sizes; the file resizes them itself.
    Arguments and errors as in `open_exported`.
    """

    def __init__(self, path: str, device: str = 'cpu', trust: bool = False) -> None:
        super().__init__()
        # As many threads as PyTorch would take: each of several ranks has its share.
        self.network = open_exported(path, device, torch.get_num_threads(), trust)
        # DistributedDataParallel refuses a module that has no parameter.
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(
        self, inputs: Sequence[Tensor], data_samples: list[SegDataSample] | None = None, mode: str = 'tensor'
    ) -> list[SegDataSample]:
        """Samples with ``pred_sem_seg``, uint8 (1, H, W), of BGR uint8 (3, H, W)."""
        if mode != 'predict':
            path = self.network.path
            raise InputError(f'{path}: is exported, and gives label maps alone; train its checkpoint')
        samples = [SegDataSample() for _ in inputs] if data_samples is None else data_samples
        for frame, sample in zip(inputs, samples, strict=True):
            if frame.dtype != torch.uint8:
                raise InputError(
                    f'{self.network.path}: takes frames of bytes, the test pipeline makes {frame.dtype}; '
                    'leave to_float32 and Normalize out of it: what the network needs is in the file'
                )
            # One by one: frames may differ in size, and a batch gains no time on a CPU.
            label = self.network.label_maps(frame.permute(1, 2, 0)[None].cpu().numpy(), 'BGR')
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(label))
        return samples


def score_exported(
    config: Config, path: str, device: str | None = None, trust: bool = False, uncertainty: int | None = None
) -> list[str]:
    """Replace a config's model, and its test pipeline's Resize, by an exported file, for a test run.

    Returns lines on the config's Resize and thresholds, if it has any: the file's own are applied. With
    ``'cuda'`` each of several ranks has its own GPU. An InputError says that the file cannot be used, that
    its classes are not the data set's, or that the config, or ``uncertainty`` (passes of Monte-Carlo
    dropout), asks for what a file cannot do.
    """
    device = f'cuda:{this_process.local_rank}' if device == 'cuda' else device or 'cpu'
    test_cfg = config.model.get('test_cfg') or {}
    evaluators = config.get('test_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    asked = [] if uncertainty is None else [f'--uncertainty {uncertainty}']
    calibration = 'LyftCalibrationMetric'
    asked += [f'test_evaluator: {calibration}' for one in evaluators if one['type'] == calibration]
    asked += [f'model.test_cfg.{key}={test_cfg[key]}' for key in beyond_plain(test_cfg)]
    if asked:
        raise InputError(
            f'{", ".join(asked)}: {path} is the network alone, on complete frames; leave them out, or score '
            'the checkpoint it was exported from'
        )
    classes = open_exported(path, device, torch.get_num_threads(), trust).classes
    wanted = (_named_by_config(config) or {}).get('classes')
    if wanted is not None and list(wanted) != list(classes):
        raise InputError(
            f'{path}: labels {", ".join(classes)}; {config.filename or "the config"} tests on '
            f'{", ".join(wanted)}. Name a config that tests on the classes of the file, or a file of its own'
        )
    config.model = dict(type=LyftExportedSegmentor.__name__, path=path, device=device, trust=trust)
    config.load_from, config.resume = None, False
    said = ['class thresholds'] if test_cfg.get('thresholds') is not None else []
    for dataset in leaf_datasets((config.get('test_dataloader') or {}).get('dataset') or {}):
        steps = dataset.get('pipeline') or []
        dataset['pipeline'] = [step for step in steps if step['type'] not in ('Resize', 'mmcv.Resize')]
        said += ['Resize'] if len(dataset['pipeline']) < len(steps) and 'Resize' not in said else []
    # These hooks average weights, which a file does not have.
    averaging = ('EMAHook', 'LyftEMAHook')
    config.custom_hooks = [hook for hook in config.get('custom_hooks') or [] if hook['type'] not in averaging]
    return [f'{path}: has the {what} that it was exported with, not that of the config' for what in said]


def write_safetensors(
    checkpoint_path: str | Path,
    out_path: str | Path,
    config: Config | str | None = None,
    trust: bool = False,
) -> Path:
    """Write a checkpoint's weights as a ``.safetensors`` file, complete or not at all; returns its path.

    It holds the same weights, bit by bit, and what `Segmenter` needs to know; the optimizer and the log are
    left out. A config is needed unless the checkpoint describes its model.

    Raises:
        InputError: If the checkpoint cannot be read, does not describe its model, or does not fit the config,
            or the file cannot be written.
    """
    path, out = str(checkpoint_path), Path(out_path)
    if out.suffix != SAFETENSORS:
        raise InputError(f'{out}: weights as safetensors have the suffix {SAFETENSORS}')
    content = read_checkpoint(path, trust=trust)
    weights, meta = weights_of(content, path), _mapping(content.get('meta'))
    if config is None:
        model: Any = dict(format=DESCRIPTION_FORMAT) | checked(meta.get(KEY), path)
    else:
        config = config if isinstance(config, Config) else load_config(config)
        build_model(config, path, trust)  # Raises unless they fit each other.
        model = describe(config)
    found = {**meta, **_validation(content)}
    if 'dataset_meta' in found:
        # The rest is about the data set's files.
        named = _mapping(found['dataset_meta']).items()
        keys = ('classes', 'palette', 'scheme', 'hood')
        found['dataset_meta'] = {key: value for key, value in named if key in keys}
    fields = dict(format=SAFETENSORS_FORMAT, version=__version__, model=model)
    fields |= {key: found[key] for key in KEPT if key in found}
    write_whole(out, pack_weights(weights, fields, path))
    return out


def write_pretrained(path: str, folder: str | Path, *options: Any) -> Path:
    """Write a folder in the Hub's form: ``model.safetensors``, ``config.json``, ``README.md``; returns it.

    Weights, ``options`` and errors are as in `write_safetensors`; ``config.json`` is the weights' metadata,
    ``README.md`` the model card, unless one is there.
    """
    folder, before = Path(folder), Path(path).with_name('README.md')
    weights = write_safetensors(path, folder / WEIGHTS_NAME, *options)
    write_json(folder / 'config.json', read_checkpoint(str(weights))['meta'])
    text = f'# {Path(path).stem}\n\nA model of mmseg_unet_lyft without run card.\n'
    if card_file(Path(path)).is_file():
        text = card_of(Path(path), weights=weights)
    elif Path(path).name == WEIGHTS_NAME and before.is_file():
        text = before.read_text(encoding='utf-8')  # Saved before.
    if not (folder / 'README.md').exists():
        write_whole(folder / 'README.md', text.encode('utf-8', 'backslashreplace'))
    return folder


def _validation(content: Mapping) -> dict[str, dict[str, float]]:
    """The scores of these very weights, under ``validation``; nothing where the checkpoint has none."""
    hub = _mapping(content.get('message_hub'))
    # A checkpoint that was written while training holds the previous validation's scores, of other weights.
    if _mapping(hub.get('runtime_info')).get('loop_stage') != 'val':
        return {}
    scores = {
        str(name).removeprefix('val/'): float(history.current())
        for name, history in _mapping(hub.get('log_scalars')).items()
        if str(name).startswith('val/') and isinstance(history, HistoryBuffer)
    }
    scores = {name: value for name, value in scores.items() if name not in ('time', 'data_time')}
    return dict(validation=scores) if scores else {}


def _mapping(value: Any) -> Mapping:
    """The value if it is a mapping, else an empty one: foreign files hold anything."""
    return value if isinstance(value, Mapping) else {}
