"""A model described as plain data: a checkpoint works without its config, and no code is run for it."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

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


def _plain(value: Any, place: str = 'the model') -> Any:
    """A copy in dicts, lists, tuples, text and numbers, with known types only; else an InputError."""
    if isinstance(value, Mapping):
        if 'type' in value and not (isinstance(value['type'], str) and value['type'] in KNOWN_TYPES):
            raise InputError(f'{place} has the type {value["type"]!r}, which is not among the known ones')
        for key in value:
            # mmengine imports what `_scope_` names.
            if not isinstance(key, str) or key.startswith('_'):
                raise InputError(f'{place} has the key {key!r}, which is not for a description')
        return {key: _plain(item, f'{place}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # mmcv's Resize wants its scale as a tuple.
        return (tuple if isinstance(value, tuple) else list)(_plain(item, place) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f'{place} is a {type(value).__name__} and not a plain value')


def scheme_of(config: Config) -> str | None:
    """Name of the label scheme that a config tests with; None for data sets of other kinds."""
    found = our_datasets(config.get('test_dataloader'))
    return found[0].get('scheme', 'carla13') if found else None
