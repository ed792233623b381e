"""What an inspection found, as one HTML file without scripts or links, and as JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ..datasets import leak, png
from ..datasets.episodes import SPLITS
from ..datasets.inspection import KINDS, Inspection
from ..datasets.judging import Judged
from ..datasets.labels import get_scheme
from ..datasets.leak import Leak
from ..datasets.simulators import SIMULATORS
from ..datasets.statistics import class_weights, to_json
from .figures import colour_label

_PICTURE_WH = (320, 240)
_OFFENDERS = 12
_RAREST_CLASSES, _FRAMES_OF_CLASS = 4, 3
_LISTED_PROBLEMS = 2000
_NO_CLASS_RGB = (255, 255, 255)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .15em .6em; text-align: left }
tr:nth-child(even) { background: #f4f4f4 } td.n { text-align: right; font-variant-numeric: tabular-nums }
td { overflow-wrap: anywhere }
.bar { display: flex; height: 1.1em; width: 36em; border: 1px solid #bbb } .bar i { display: block }
.key i { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; border: 1px solid #999 }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; max-width: 41em }
figcaption { font-size: 13px; overflow-wrap: anywhere } .bad { color: #b00020 } .good { color: #176b2c }
"""


def to_json_report(inspection: Inspection, leaks: Sequence[Leak]) -> dict:
    """Everything an inspection found; the same data give the same content."""

    def listed(problems: Iterable) -> list[dict]:
        return [dict(kind=one.kind, path=one.path, message=one.message) for one in problems]

    return dict(
        version=1,
        simulator=inspection.simulator,
        sound=not inspection.problems,
        frames=len(inspection.judged),
        sound_frames=len(inspection.sound),
        size=list(inspection.size),
        problems=listed(inspection.problems),
        accepted=listed(inspection.accepted),
        counts=problem_counts(inspection),
        stats=to_json(inspection.stats) if inspection.stats.drives else None,
        leaks=leak.to_json(leaks),
    )


def problem_counts(inspection: Inspection) -> dict[str, int]:
    """How many problems of each kind there are, in the order of `KINDS`; only kinds that occur."""
    counts = dict.fromkeys(KINDS, 0)
    for problem in inspection.problems:
        counts[problem.kind] += 1
    return {kind: count for kind, count in counts.items() if count}


def build_page(inspection: Inspection, leaks: Sequence[Leak]) -> str:
    """The HTML page; every name in it is escaped."""
    stats = inspection.stats
    verdict = (
        f'<p class="bad">{len(inspection.problems)} problems.</p>'
        if inspection.problems
        else '<p class="good">Sound: no problem found.</p>'
    )
    height, width = inspection.size
    about = (
        f'<p>{len(inspection.judged)} frames, {len(inspection.sound)} sound; of {height}x{width} '
        f'(height x width); tags of CARLA {inspection.simulator}.</p>'
    )
    sections = [
        f'<h1>Inspection of {escape(inspection.root.name)}</h1>{verdict}',
        about,
        _problem_tables(inspection),
        _offenders(inspection),
    ]
    if stats.drives:
        sections += [_measures(inspection), _histograms(inspection), _rarest(inspection)]
    sections.append(_leak_table(leaks))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        # Nothing is loaded or run, whatever the data's names hold.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<title>Inspection</title><style>{_STYLE}</style></head><body>{"".join(sections)}</body></html>\n'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table; numbers to the right, strings escaped, `_Html` as it is."""

    def cell(value: object) -> str:
        if isinstance(value, _Html):
            return f'<td>{value}</td>'
        return f'<td>{escape(value)}</td>' if isinstance(value, str) else f'<td class="n">{value}</td>'

    lines = ''.join(f'<tr>{"".join(cell(value) for value in row)}</tr>' for row in rows)
    return f'<table><tr>{"".join(f"<th>{escape(name)}</th>" for name in head)}</tr>{lines}</table>'


class _Html(str):
    """Text that is HTML already."""


def _problem_tables(inspection: Inspection) -> str:
    if not inspection.problems:
        return ''
    counts = problem_counts(inspection)
    shown = inspection.problems[:_LISTED_PROBLEMS]
    more = len(inspection.problems) - len(shown)
    return (
        '<h2>Problems</h2>'
        + _table(('problem', 'count'), ((KINDS[kind], count) for kind, count in counts.items()))
        + _table(('problem', 'file', 'what'), ((KINDS[one.kind], one.path, one.message) for one in shown))
        + (f'<p>and {more} more, in inspection.json</p>' if more else '')
    )


def _offenders(inspection: Inspection) -> str:
    """The frames with most problems as pictures."""
    faults: dict[str, list] = {}
    for problem in inspection.problems:
        if problem.frame:
            faults.setdefault(problem.frame, []).append(problem)
    frames = {one.files.name: one for one in inspection.judged}
    worst = sorted((name for name in faults if name in frames), key=lambda name: (-len(faults[name]), name))
    figures = [
        _figure(inspection, frames[name], f'{name}: {"; ".join(problem.message for problem in faults[name])}')
        for name in worst[:_OFFENDERS]
    ]
    if not figures:
        return ''
    note = 'White: class ids out of range. Grey: cannot be decoded.'
    return f'<h2>Worst offenders</h2><p>{note}</p>{"".join(figures)}'


def _figure(inspection: Inspection, judged: Judged, caption: str) -> str:
    """Image and coloured label of a frame, small, inside the page."""
    palette = _tag_palette(inspection.simulator)
    pictures = []
    for path, is_label in ((judged.files.image, False), (judged.files.label, True)):
        picture = _small_picture(inspection.root / path, palette if is_label else None)
        data = base64.b64encode(cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]).decode()
        pictures.append(f'<img alt="" width="{_PICTURE_WH[0]}" src="data:image/jpeg;base64,{data}">')
    return f'<figure>{"".join(pictures)}<figcaption>{escape(caption)}</figcaption></figure>'


def _small_picture(path: Path, palette: np.ndarray | None) -> np.ndarray:
    """An image, or with a palette a label in its colours, BGR; grey where it cannot be decoded."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b''
    header = png.header_of(content)
    is_jpeg = content.startswith(png.JPEG_SIGNATURE)
    pixels = None
    if is_jpeg or (header is not None and 0 < header.size[0] * header.size[1] <= 2**24):
        tags = palette is not None and not is_jpeg and header.bit_depth != 16
        pixels = png.decode_tags(content) if tags else png.decode(content)
    if pixels is None:
        return np.full((*_PICTURE_WH[::-1], 3), 128, np.uint8)
    if palette is not None:
        pixels = palette[pixels if pixels.ndim == 2 else pixels[..., 2]][..., ::-1]
    # Nearest: a mean of two class colours would be a third class.
    return cv2.resize(pixels, _PICTURE_WH, interpolation=cv2.INTER_NEAREST if palette is not None else 3)


def _tag_palette(simulator: str) -> np.ndarray:
    """Colour of each tag's class, RGB uint8 (256, 3)."""
    scheme = get_scheme(SIMULATORS[simulator].scheme_name)
    colours = np.full((256, 3), _NO_CLASS_RGB, np.uint8)
    colours[: len(scheme.tag_to_id)] = colour_label(np.array(scheme.tag_to_id, np.uint8), scheme.palette)
    return colours


def _measures(inspection: Inspection) -> str:
    """Class counts and weights, mean and deviation, hood."""
    stats, scheme = inspection.stats, get_scheme(SIMULATORS[inspection.simulator].scheme_name)
    parts = to_json(stats)['derived']
    part = 'train' if 'train' in parts else 'all'
    percent = stats.percent(scheme, None if part == 'all' else part)
    weights = class_weights(percent)
    rows = [
        (name, f'{percent[index]:.4f}', *(f'{one[index]:.2f}' for one in weights.values()))
        for index, name in enumerate(scheme.classes)
    ]
    mean, std = ([round(float(value), 2) for value in values] for values in stats.mean_std())
    hood = 'none'
    if stats.hood is not None:
        hood = f'{int(stats.hood.sum())} pixels ({100 * stats.hood.mean():.3f} % of every frame)'
    head = ('class', f'% of pixels ({part})', 'weight, median frequency (square root)', 'weight, 1/log')
    return (
        f'<h2>For training</h2>{_table(head, rows)}<p>Mean {mean}, deviation {std} (R, G, B). '
        f'Hood, vehicle in every sound frame: {escape(hood)}.</p>'
    )


def _histograms(inspection: Inspection) -> str:
    """A bar of class shares for each drive and each part of the split."""
    stats, scheme = inspection.stats, get_scheme(SIMULATORS[inspection.simulator].scheme_name)
    groups = {part: tuple(one for one in drives if one in stats.drives) for part, drives in SPLITS.items()}
    groups = {part: drives for part, drives in groups.items() if drives}
    groups |= {f'drive {drive}': (drive,) for drive in sorted(stats.drives)}
    rows = []
    for name, drives in groups.items():
        percent = stats.percent(scheme, drives)
        bars = ''.join(
            f'<i title="{escape(label)} {share:.3f} %" style="width:{share:.3f}%;background:rgb{colour}"></i>'
            for label, share, colour in zip(scheme.classes, percent, scheme.palette, strict=True)
        )
        frames = sum(stats.drives[drive].frames for drive in drives)
        rows.append((name, frames, _Html(f'<div class="bar">{bars}</div>')))
    key = ''.join(
        f'<i style="background:rgb{colour}"></i>{escape(name)}'
        for name, colour in zip(scheme.classes, scheme.palette, strict=True)
    )
    return (
        f'<h2>Classes by drive and split</h2><p class="key">{key}</p>'
        f'{_table(("", "frames", "share of pixels"), rows)}'
    )


def _rarest(inspection: Inspection) -> str:
    """Frames with most pixels of the rarest classes."""
    scheme = get_scheme(SIMULATORS[inspection.simulator].scheme_name)
    percent = inspection.stats.percent(scheme)
    rarest = [index for index in np.argsort(percent, kind='stable') if percent[index] > 0][:_RAREST_CLASSES]
    sound, sections = inspection.sound, []
    for index in rarest:
        tags = np.flatnonzero(np.array(scheme.tag_to_id) == index)
        pixels = [int(one.tag_pixels[tags].sum()) for one in sound]
        order = np.argsort(pixels, kind='stable')[::-1][:_FRAMES_OF_CLASS]
        figures = ''.join(
            _figure(
                inspection,
                sound[place],
                f'{sound[place].files.name}: {pixels[place]} pixels',
            )
            for place in order
            if pixels[place]
        )
        count = sum(value > 0 for value in pixels)
        sections.append(f'<h3>{escape(scheme.classes[index])} ({count} frames)</h3>{figures}')
    return f'<h2>Frames with the rarest classes</h2>{"".join(sections)}'


def _leak_table(leaks: Sequence[Leak]) -> str:
    """How well each split's held-out frames are predicted by copying."""
    if not leaks:
        return '<h2>Leaks</h2><p>Not measured: too few sound frames for a split.</p>'
    rows = (
        (one.split, one.part, len(one.frames), one.train_frames)
        + tuple(f'{value:.1f}' for value in (one.same_drive, one.agreement, one.miou))
        for one in leaks
    )
    head = ('split', 'part', 'frames', 'train frames', 'nearest of the same drive, %', 'pixels agree, %')
    return (
        '<h2>Leaks</h2><p>Each frame gets the label of the training frame whose image is nearest (L2 of '
        '40x30 thumbnails); no network is involved. What this scores, a model gets for remembering.</p>'
        + _table((*head, 'mIoU, %'), rows)
    )
