"""The seven kinds of input, each with its mutations, consumers and independent reader."""

from __future__ import annotations

from . import feeding, meaning
from . import mutations as m
from .kind import Kind
from .sample import CONFIG

_ANY = dict(truncated=m.truncate, flipped=m.flip_bits, emptied=m.empty)
_PNG = {
    **_ANY,
    'flipped early': m.flip_early_bits,
    'resized': m.resize_png,
    'recompressed': m.recompress,
    'as JPEG': m.code_as_jpeg,
    'with alpha': m.add_alpha,
    'in 16 bits': m.code_in_16_bits,
    'as grey': m.code_as_grey,
}
_OF_MASKS = {
    f'a mask {name}': m.change_mask(_PNG[name])
    for name in ('truncated', 'flipped', 'emptied', 'resized', 'recompressed', 'as JPEG', 'in 16 bits')
}
_JSON = {
    **_ANY,
    'flipped early': m.flip_early_bits,
    'letter changed': m.change_word,
    'indented': m.indent_json,
}
_ARRAY = {**_ANY, 'flipped early': m.flip_early_bits, 're-encoded': m.change_array}
_ZIP = {
    **_ANY,
    'flipped early': m.flip_early_bits,
    'repacked': m.repack_zip,
    'member missing': m.drop_member,
    'member cut': m.cut_member,
}
_TEXT = {**_ANY, 'letter changed': m.change_word, 'line missing': m.drop_line}

KINDS = (
    Kind(
        'images',
        'frames',
        {'.png': {**_PNG, 'in a palette': m.code_in_palette}},
        (feeding.PREDICT_IMAGES, feeding.READ_IMAGES, feeding.INSPECT_IMAGES),
        meaning.of_image,
        harmless=frozenset({'recompressed', 'with alpha'}),
        manifest=feeding.COMPARE,
    ),
    Kind(
        'labels',
        'frames',
        {'.png': {**_PNG, 'tags in a palette': m.tags_in_palette, 'tags as grey': m.tags_as_grey}},
        (
            *(feeding.READ_LABELS, feeding.INSPECT_LABELS) * 2,
            feeding.GRADE_LABELS,
            feeding.TEST_LABELS,
        ),
        meaning.of_label,
        harmless=frozenset({'recompressed', 'with alpha'}),
        manifest=feeding.COMPARE,
    ),
    Kind(
        'packed files',
        'packed',
        {'.npy': _ARRAY, '.json': _JSON},
        (feeding.VERIFY, feeding.READ_PACKED, feeding.GRADE_PACKED),
        meaning.of_packed,
    ),
    Kind(
        'checkpoints',
        'run',
        {'.pth': _ZIP, '.sha256': _TEXT, '': _TEXT},
        (*(feeding.PREDICT_MODEL,) * 3, feeding.TEST_MODEL, feeding.RESUME, feeding.RESUME_FROM),
        meaning.of_checkpoint,
    ),
    Kind(
        'JSON answers',
        'answers',
        {'.json': {**_JSON, **_OF_MASKS, 'frame missing': m.drop_frame}},
        (feeding.GRADE_ANSWER,),
        meaning.of_answer,
        harmless=frozenset({'indented', 'a mask recompressed'}),
    ),
    Kind(
        'videos',
        'videos',
        {'.mp4': {**_ANY, 'flipped early': m.flip_early_bits, 'remuxed': m.remux, 'resized': m.resize_video}},
        (feeding.LABEL_VIDEO,),
        meaning.of_video,
    ),
    Kind(
        'configs',
        'configs',
        {'.py': {**_TEXT, 'reformatted': m.reformat_text, 'recoded': m.recode_text}},
        (feeding.READ_CONFIG, feeding.TRAIN_CONFIG),
        meaning.of_config,
        harmless=frozenset({'reformatted'}),
        whole=CONFIG,
    ),
)
