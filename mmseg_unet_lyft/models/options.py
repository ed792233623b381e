"""``test_cfg`` of a segmentor: which keys there are, and whether their values make sense."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError

# What each key is where a config leaves it out: mmseg's own behaviour.
_DEFAULTS = dict(
    mode='whole',
    crop_size=None,
    stride=None,
    window='uniform',
    scales=(1.0,),
    flip=False,
    thresholds=None,
    passes=None,
)
TEST_KEYS = frozenset(_DEFAULTS)
_MODES = ('whole', 'slide')
_WINDOWS = ('gaussian', 'uniform')


def complete_test_cfg(test_cfg: Mapping[str, Any], out_channels: int) -> dict[str, Any]:
    """A ``test_cfg`` with every key.

    Args:
        test_cfg: As in `LyftSegmentor`; what is left out is mmseg's behaviour.
        out_channels: Channels of the network's output.

    Returns:
        All keys; ``scales`` and ``thresholds`` as tuples of floats, ``stride`` half the window by default.

    Raises:
        InputError: If a key is unknown, or a value makes no sense.
    """
    for key in test_cfg:
        if key not in _DEFAULTS:
            nearest = difflib.get_close_matches(key, _DEFAULTS, n=1, cutoff=0.0)[0]
            raise InputError(f'test_cfg.{key}: no such key; did you mean test_cfg.{nearest}?')
    config = _DEFAULTS | dict(test_cfg)
    for key, known in (('mode', _MODES), ('window', _WINDOWS)):
        if config[key] not in known:
            raise InputError(f'test_cfg.{key}={config[key]!r}: give one of {", ".join(known)}')
    _check_windows(config)
    config['scales'] = _positive_numbers('scales', config['scales'])
    if not isinstance(config['flip'], bool):
        raise InputError(f'test_cfg.flip={config["flip"]!r}: give True or False')
    _check_thresholds(config, out_channels)
    passes = config['passes']
    if passes is not None and (not _is_whole(passes) or passes < 1):
        raise InputError(f'test_cfg.passes={passes!r}: give a whole number of 1 or more, usually 10, or None')
    return config


def beyond_plain(test_cfg: Mapping[str, Any] | None) -> list[str]:
    """Keys by which a network is applied otherwise than once, on whole frames; thresholds aside."""
    found = _DEFAULTS | dict(test_cfg or {})
    asked = dict(
        scales=tuple(found['scales'] or (1.0,)) != (1.0,),
        flip=bool(found['flip']),
        mode=found['mode'] != 'whole',
        passes=(found['passes'] or 1) > 1,
    )
    return [key for key, is_asked in asked.items() if is_asked]


def _check_windows(config: dict[str, Any]) -> None:
    """Check crop size and stride, and fill in the stride."""
    if config['mode'] == 'whole':
        if config['stride'] is not None and config['crop_size'] is None:
            raise InputError(
                f'test_cfg.stride={config["stride"]!r} without a window has no effect; set the knob '
                "window_size too, which is test_cfg.mode='slide' and test_cfg.crop_size"
            )
        return
    if config['crop_size'] is None:
        raise InputError("test_cfg.mode='slide' needs test_cfg.crop_size=(height, width); knob window_size")
    config['crop_size'] = _sides('crop_size', config['crop_size'])
    if config['stride'] is None:
        config['stride'] = tuple(max(side // 2, 1) for side in config['crop_size'])
    config['stride'] = _sides('stride', config['stride'])
    if any(step > side for step, side in zip(config['stride'], config['crop_size'], strict=True)):
        raise InputError(
            f'test_cfg.stride={config["stride"]} is larger than test_cfg.crop_size={config["crop_size"]}: '
            'pixels between the windows would have no answer; half the window is usual'
        )


def _check_thresholds(config: dict[str, Any], out_channels: int) -> None:
    """Check that there is one threshold a class, if any."""
    if config['thresholds'] is None:
        return
    if out_channels == 1:
        raise InputError(
            f'test_cfg.thresholds={config["thresholds"]!r} for a single output, which has one threshold of '
            'its own; set the knob threshold, which is model.decode_head.threshold'
        )
    thresholds = config['thresholds'] = _positive_numbers('thresholds', config['thresholds'])
    if len(thresholds) != out_channels:
        raise InputError(
            f'test_cfg.thresholds={thresholds}: {len(thresholds)} thresholds for {out_channels} classes; '
            'give one a class'
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sides(key: str, value: Any) -> tuple[int, int]:
    """A height and a width."""
    is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not is_pair or not all(_is_whole(side) and side > 0 for side in value):
        raise InputError(f'test_cfg.{key}={value!r}: give (height, width), whole numbers above 0')
    return tuple(value)


def _positive_numbers(key: str, value: Any) -> tuple[float, ...]:
    """One number above 0 or more."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not is_list or not all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf
        for number in value
    ):
        raise InputError(f'test_cfg.{key}={value!r}: give a list of numbers above 0, such as [0.75, 1.0]')
    return tuple(float(number) for number in value)
