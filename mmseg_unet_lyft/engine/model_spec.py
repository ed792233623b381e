"""A model described as plain data: a checkpoint works without its config, and no code is run for it."""

import math
from collections.abc import Mapping
from inspect import isclass
from typing import Any

from mmengine.config import Config
from mmseg.registry import MODELS

from ..datasets.image_io import LARGEST_RESIZED_PIXELS
from ..datasets.layout import our_datasets
from ..errors import InputError

KEY = 'lyft_model'  # In a checkpoint's ``meta``.
FORMAT = 1
# What a description may name: networks and layers, nothing that reads files or calls what it is given.
KNOWN_TYPES = frozenset(
    """
    LyftSegmentor LyftUNet LyftEfficientNetLite LyftUNetHead LyftDataPreProcessor LyftCrossEntropyLoss
    EncoderDecoder SegDataPreProcessor CrossEntropyLoss UNet BasicConvBlock DeconvModule InterpConv
    ResNet ResNetV1c ResNetV1d MobileNetV2
    FCNHead PSPHead ASPPHead DepthwiseSeparableASPPHead UPerHead SegformerHead
    BN BN2d SyncBN GN LN IN IN2d ReLU ReLU6 LeakyReLU PReLU ELU GELU SiLU HSwish Conv2d
    Resize
    """.split()
)
# Keys for training, initial weights or a head that is not used; the file brings its own weights.
_LEFT_OUT = frozenset({'pretrained', 'init_cfg', 'train_cfg', 'auxiliary_head', 'loss_decode', 'sampler'})
# Steps of a test pipeline that read or pack; what is between them changes the image.
_READ_OR_PACK = ('LoadImageFromFile', 'LoadLyftLabel', 'LoadAnnotations', 'PackSegInputs')

# What a description may ask for, by key: it is tried before anyone knows that its weights fit.
_LONGEST = dict(scales=16)
_MOST = dict(scales=4, scale_factor=4, passes=100, size_divisor=1024, num_convs=64, num_stages=64)
# Of windows that slide over a frame, in pixels: each is a pass.
_LEAST = dict(crop_size=16, stride=8)


def inference_part(model: Mapping) -> dict:
    """A model's config without what only training needs."""
    return {
        key: inference_part(value) if isinstance(value, Mapping) else value
        for key, value in model.items()
        if key not in _LEFT_OUT
    }


def image_steps(config: Config) -> list[dict]:
    """The steps of a config's ``test_pipeline`` between reading and packing; an InputError without one."""
    if 'test_pipeline' not in config:
        raise InputError(f'{config.filename}: has no test_pipeline; name a config that mmseg.apis could use')
    return [dict(step) for step in config.test_pipeline if step['type'] not in _READ_OR_PACK]


def describe(config: Config) -> dict | str:
    """A config's model as plain data for a checkpoint; for unknown types, the reason against it as text."""
    try:
        return dict(
            format=FORMAT,
            model=_plain(inference_part(config.model)),
            steps=_plain(image_steps(config)),
            scheme=scheme_of(config),
            data_sha256=(config.get('data_stats') or {}).get('sha256'),
        )
    except InputError as error:
        return str(error)


def checked(description: Any, path: str) -> dict:
    """The description that a checkpoint carries under `KEY` of its ``meta``.

    An InputError if there is none, or it holds anything but known types and plain values.
    """
    remedy = 'name the config it was trained with before it'
    if not isinstance(description, dict) or description.get('format') != FORMAT:
        why = f' ({description})' if isinstance(description, str) else ''
        raise InputError(f'{path}: does not describe its model in a way this version knows{why}; {remedy}')
    try:
        plain = dict(model=_plain(inference_part(description['model'])), steps=_plain(description['steps']))
    except (InputError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f'{path}: its description of the model is refused ({error}); {remedy}') from None
    return plain | dict(scheme=description.get('scheme'), data_sha256=description.get('data_sha256'))


def _is_known(name: str) -> bool:
    """Whether a description may name a type: a network, a layer, or what the user's own code registered."""
    # A name with a package in front has mmengine import it.
    if name in KNOWN_TYPES or '.' in name:
        return name in KNOWN_TYPES
    found = MODELS.get(name)
    package, _, part = getattr(found, '__module__', '').partition('.')
    # timm's reads the files that its arguments name.
    return isclass(found) and (
        (package == 'mmseg' and part.startswith('models.backbones.') and name != 'TIMMBackbone')
        or package
        not in ('mmseg', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain', 'torch', __name__.partition('.')[0])
    )


def _plain(value: Any, place: str = 'the model') -> Any:
    """A copy in dicts, lists, tuples, text and numbers, with known types only; else an InputError."""
    if isinstance(value, Mapping):
        if 'type' in value and not (isinstance(value['type'], str) and _is_known(value['type'])):
            raise InputError(
                f'{place} has the type {value["type"]!r}, which is not among the known ones; '
                'of a class of your own, import the module first'
            )
        for key in value:
            # mmengine imports what `_scope_` names.
            if not isinstance(key, str) or key.startswith('_'):
                raise InputError(f'{place} has the key {key!r}, which is not for a description')
            _require_modest(place, key, value[key], slides=value.get('mode') == 'slide')
        return {key: _plain(item, f'{place}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # mmcv's Resize wants its scale as a tuple.
        return (tuple if isinstance(value, tuple) else list)(_plain(item, place) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f'{place} is a {type(value).__name__} and not a plain value')


def _require_modest(place: str, key: str, value: Any, slides: bool) -> None:
    """Raise an InputError if a value asks for more memory or work than any model needs."""
    many = value if isinstance(value, (list, tuple)) else [value]
    numbers = [one for one in many if type(one) in (int, float)]
    longest, most = _LONGEST.get(key, 256), _MOST.get(key, 10_000)
    least = _LEAST.get(key, 0) if slides else -most
    area = math.prod(numbers if len(numbers) == 2 else numbers[:1] * 2) if key in ('scale', 'size') else 0
    # The comparisons fail for nan, too.
    is_modest = len(many) <= longest and all(least <= one <= most for one in numbers)
    if not is_modest or area > LARGEST_RESIZED_PIXELS:
        shown = f'{len(many)} values' if len(many) > longest else repr(value)
        raise InputError(f'{place}.{key} is {shown}, which no model needs')


def scheme_of(config: Config) -> str | None:
    """Name of the label scheme that a config tests with; None for data sets of other kinds."""
    found = our_datasets(config.get('test_dataloader'))
    return found[0].get('scheme', 'carla13') if found else None
