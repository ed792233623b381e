"""An inspection of a data root as lines, as JSON, and as one HTML file without scripts or links.

The page is built from strings, not with Jinja as a run's page is: inspecting needs NumPy, Pillow and OpenCV
only.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ..datasets import image_io
from ..datasets.carla import SIMULATORS, SPLITS, Scheme, get_scheme, median_frequency_weights
from ..datasets.checks import KINDS, Inspection, Judged
from ..datasets.dataset_stats import to_json
from ..datasets.files import write_json, write_whole
from ..errors import InputError, printable, shorten_list
from ..evaluation import leak as leak_report
from ..evaluation.leak import Leak
from .pictures import colour_label, jpeg_uri

REPORT_NAME, PAGE_NAME, MANIFEST_NAME = 'inspection.json', 'report.html', 'manifest.json'
_EXAMPLES = 3  # Lines shown for each kind of problem.
_LISTED_PROBLEMS, _SHOWN_FRAMES = 2000, 12
_RAREST_CLASSES, _FRAMES_OF_CLASS = 4, 3
_PICTURE_WH = (320, 240)
# On 439 real and 12 synthetic frames a label explains .78 and .76 of the colours' variance, its mirror image
# .47 and .64, and in none of them more than the label.
_LEAST_EXPLAINED, _LEAST_AHEAD = 0.3, 0.05
_DARKEST = 2  # Grey level up to which a thumbnail is black.
_STYLE = Path(__file__).with_name('templates') / 'style.css'


def write_reports(out: Path, inspection: Inspection, leaks: Sequence[Leak]) -> None:
    """Write JSON and page; the same data give the same bytes."""
    found = odd(inspection)
    write_json(out / REPORT_NAME, _json_report(inspection, leaks) | dict(odd=found))
    # A name that is not UTF-8 is read as surrogates.
    write_whole(out / PAGE_NAME, _page(inspection, leaks, found).encode('utf-8', 'backslashreplace'))


def summary(inspection: Inspection, leaks: Sequence[Leak]) -> str:
    """The problems by kind with examples, and the leaks, as lines."""
    lines = [f'{len(inspection.judged)} frames, {len(inspection.valid)} valid']
    for kind, count in _problem_counts(inspection).items():
        lines.append(f'{count:6}  {KINDS[kind]} ({kind})')
        of_kind = [problem for problem in inspection.problems if problem.kind == kind]
        lines += [f'        {printable(f"{one.path}: {one.message}")}' for one in of_kind[:_EXAMPLES]]
    if inspection.accepted:
        lines.append(f'{len(inspection.accepted):6}  accepted')
    for what, names in odd(inspection).items():
        lines.append(f'{len(names):6}  {what}: {printable(shorten_list(names))}')
    if inspection.stats.drives:
        scheme = get_scheme(SIMULATORS[inspection.simulator].scheme_name)
        absent = inspection.stats.absent(scheme)
        lines += [f'{len(absent):6}  classes without a pixel: {", ".join(absent)}'] if absent else []
    for one in leaks:
        lines.append(
            f'copying the nearest training label, {one.split}, {one.part} ({len(one.frames)} frames): '
            f'mIoU {one.miou:.1f}, {one.agreement:.1f} % of pixels'
        )
    return '\n'.join(lines)


def _json_report(inspection: Inspection, leaks: Sequence[Leak]) -> dict:
    return dict(
        version=1,
        simulator=inspection.simulator,
        sound=not inspection.problems,
        frames=len(inspection.judged),
        sound_frames=len(inspection.valid),
        size=list(inspection.size),
        problems=[vars(one) for one in inspection.problems],
        accepted=[vars(one) for one in inspection.accepted],
        counts=_problem_counts(inspection),
        stats=to_json(inspection.stats) if inspection.stats.drives else None,
        leaks=leak_report.to_json(leaks),
    )


def _problem_counts(inspection: Inspection) -> dict[str, int]:
    """How many problems of each kind there are, in the order of `KINDS`; only kinds that occur."""
    kinds = [problem.kind for problem in inspection.problems]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def odd(inspection: Inspection) -> dict[str, list[str]]:
    """Names of valid frames by what is odd about them without being wrong for certain."""
    found: dict[str, list[str]] = {'all black': [], 'label looks mirrored or upside down': []}
    black, mirrored = found.values()
    for one in inspection.valid:
        if one.thumbnail.max() <= _DARKEST:
            black.append(one.files.name)
            continue
        label, size = one.read_small_label(), one.thumbnail.shape[1::-1]
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        plain, *turned = (_explained(one.thumbnail, view) for view in (label, label[:, ::-1], label[::-1]))
        if max(turned) > max(_LEAST_EXPLAINED, plain + _LEAST_AHEAD):
            mirrored.append(one.files.name)
    return {what: names for what, names in found.items() if names}


def _explained(image: np.ndarray, label: np.ndarray) -> float:
    """Share of the variance of an image's colours that lies between the tags of a label, 0 to 1."""
    pixels, tags = image.reshape(-1, 3) - image.mean(axis=(0, 1)), label.ravel()
    sums = np.stack([np.bincount(tags, channel) for channel in pixels.T])
    between = (sums**2).sum(axis=0) / np.maximum(np.bincount(tags), 1)
    return float(between.sum() / max((pixels**2).sum(), 1e-9))


# --- the page ----------------------------------------------------------------------------------------------


def _page(inspection: Inspection, leaks: Sequence[Leak], found: Mapping[str, list[str]]) -> str:
    """The HTML page; every name in it is escaped."""
    height, width = inspection.size
    scheme = get_scheme(SIMULATORS[inspection.simulator].scheme_name)
    verdict = '<p class="good">No problem found.</p>'
    if inspection.problems:
        verdict = f'<p class="bad">{len(inspection.problems)} problems.</p>'
    counts = f'{len(inspection.judged)} frames, {len(inspection.valid)} valid; of {height}x{width}'
    sections = [
        f'<h1>Inspection of {escape(inspection.root.name)}</h1>{verdict}',
        f'<p>{counts} (height x width); tags of CARLA {inspection.simulator}.</p>',
        _problem_tables(inspection),
        _frames_with_problems(inspection, scheme),
    ]
    for what, names in found.items():
        sections.append(_grid(f'{len(names)} frames: {what}', inspection, names[:_SHOWN_FRAMES], scheme))
    sections.append(_examples(inspection, scheme))
    if inspection.stats.drives:
        sections += [part(inspection, scheme) for part in (_measures, _histograms, _rarest)]
    sections.append(_leak_table(leaks))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        # Nothing is loaded or run, whatever the data's names hold.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>Inspection</title><style>{_STYLE.read_text(encoding="utf-8")}</style></head>'
        f'<body>{"".join(sections)}</body></html>\n'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table; numbers to the right, strings escaped, `_Html` as it is."""

    def cell(value: object) -> str:
        kind = 'text' if isinstance(value, str) else 'n'
        return f'<td class="{kind}">{value if isinstance(value, _Html) else escape(str(value))}</td>'

    lines = ''.join(f'<tr>{"".join(map(cell, row))}</tr>' for row in rows)
    names = ''.join(f'<th>{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


class _Html(str):
    """Text that is HTML already."""


def _problem_tables(inspection: Inspection) -> str:
    if not inspection.problems:
        return ''
    counts = [(KINDS[kind], count) for kind, count in _problem_counts(inspection).items()]
    shown = [(KINDS[one.kind], one.path, one.message) for one in inspection.problems[:_LISTED_PROBLEMS]]
    more = len(inspection.problems) - len(shown)
    return (
        f'<h2>Problems</h2>{_table(("problem", "count"), counts)}{_table(("problem", "file", "what"), shown)}'
        + (f'<p>and {more} more, in {REPORT_NAME}</p>' if more else '')
    )


def _frames_with_problems(inspection: Inspection, scheme: Scheme) -> str:
    """The frames with most problems as pictures."""
    messages: dict[str, list[str]] = {}
    for problem in inspection.problems:
        if problem.frame:
            messages.setdefault(problem.frame, []).append(problem.message)
    frames = {one.files.name: one for one in inspection.judged if one.files.name in messages}
    worst = sorted(frames, key=lambda name: (-len(messages[name]), name))[:_SHOWN_FRAMES]
    captions = [f'{name}: {"; ".join(messages[name])}' for name in worst]
    head = 'Frames with most problems; white: class ids out of range, grey: cannot be decoded'
    return _grid(head, inspection, worst, scheme, captions)


def _examples(inspection: Inspection, scheme: Scheme) -> str:
    """Valid frames from the first to the last, as pictures."""
    names = [one.files.name for one in inspection.valid]
    places = np.linspace(0, len(names) - 1, min(len(names), _SHOWN_FRAMES)).astype(int)
    return _grid('Example frames', inspection, [names[place] for place in places], scheme)


def _grid(
    head: str, inspection: Inspection, names: Sequence[str], scheme: Scheme, captions: Sequence[str] = ()
) -> str:
    """A heading and figures of frames, with their names as captions by default; nothing without frames."""
    frames = {one.files.name: one for one in inspection.judged}
    figures = [
        _figure(inspection, frames[name], scheme, caption)
        for name, caption in zip(names, captions or names, strict=True)
    ]
    return f'<h2>{escape(head)}</h2><div class="grid">{"".join(figures)}</div>' if figures else ''


def _figure(inspection: Inspection, judged: Judged, scheme: Scheme, caption: str) -> str:
    """Image and coloured label of a frame, small, inside the page."""
    pictures = []
    for path, shown in ((judged.files.image, None), (judged.files.label, scheme)):
        picture = _small_picture(inspection.root / path, shown)
        pictures.append(f'<img alt="" width="{_PICTURE_WH[0]}" src="{jpeg_uri(picture)}">')
    return f'<figure class="pair">{"".join(pictures)}<figcaption>{escape(caption)}</figcaption></figure>'


def _small_picture(path: Path, scheme: Scheme | None) -> np.ndarray:
    """An image, or with a scheme a label in its colours, RGB; grey if it cannot be read."""
    with suppress(InputError):
        if scheme is None:
            return cv2.resize(image_io.read_image(path), _PICTURE_WH, interpolation=cv2.INTER_AREA)[..., ::-1]
        raw_label = image_io.read_raw_label(path, release=scheme.simulator)
        palette = colour_label(np.array(scheme.tag_to_id, np.uint8), scheme.palette)
        coloured = colour_label(raw_label, palette)
        # Nearest: a mean of two class colours would be a third class.
        return cv2.resize(coloured, _PICTURE_WH, interpolation=cv2.INTER_NEAREST)
    return np.full((*_PICTURE_WH[::-1], 3), 128, np.uint8)


def _measures(inspection: Inspection, scheme: Scheme) -> str:
    """Class shares and weights, mean and deviation, hood."""
    stats = inspection.stats
    drives = 'train' if stats.drives.keys() & set(SPLITS['train']) else None
    percent = stats.percent(scheme, drives)
    weights = median_frequency_weights(stats.percent(scheme, drives, for_weights=True))
    rows = [
        (name, f'{percent[index]:.4f}', f'{weights[index]:.2f}') for index, name in enumerate(scheme.classes)
    ]
    mean, std = ([round(float(value), 2) for value in values] for values in stats.mean_std())
    hood = 'none'
    if stats.hood is not None:
        hood = f'{int(stats.hood.sum())} pixels ({100 * stats.hood.mean():.3f} % of every frame)'
    head = ('class', f'% of pixels ({drives or "all"})', 'weight, median frequency (square root)')
    return (
        f'<h2>For training</h2>{_table(head, rows)}<p>Mean {mean}, deviation {std} (R, G, B). '
        f'Hood, vehicle in every valid frame: {hood}.</p>'
    )


def _histograms(inspection: Inspection, scheme: Scheme) -> str:
    """A bar of class shares for each drive and each part of the split."""
    stats, rows = inspection.stats, []
    groups = {part: tuple(one for one in drives if one in stats.drives) for part, drives in SPLITS.items()}
    groups |= {f'drive {drive}': (drive,) for drive in sorted(stats.drives)}
    names, colours = [escape(name) for name in scheme.classes], scheme.palette
    for group, drives in groups.items():
        if not drives:
            continue
        bars = ''.join(
            f'<i title="{name} {share:.3f} %" style="width:{share:.3f}%;background:rgb{colour}"></i>'
            for name, share, colour in zip(names, stats.percent(scheme, drives), colours, strict=True)
        )
        frames = sum(stats.drives[drive].frames for drive in drives)
        rows.append((group, frames, _Html(f'<div class="bar">{bars}</div>')))
    key = ''.join(
        f'<span><i style="background:rgb{colour}"></i>{name}</span>'
        for name, colour in zip(names, colours, strict=True)
    )
    table = _table(('', 'frames', 'share of pixels'), rows)
    return f'<h2>Classes by drive and split</h2><p class="key">{key}</p>{table}'


def _rarest(inspection: Inspection, scheme: Scheme) -> str:
    """Frames with most pixels of the rarest classes."""
    percent = inspection.stats.percent(scheme)
    rarest = [index for index in np.argsort(percent, kind='stable') if percent[index] > 0][:_RAREST_CLASSES]
    valid, sections = inspection.valid, ['<h2>Frames with the rarest classes</h2>']
    for index in rarest:
        tags = np.flatnonzero(np.array(scheme.tag_to_id) == index)
        pixels = [int(one.tag_pixels[tags].sum()) for one in valid]
        count = sum(value > 0 for value in pixels)
        order = np.argsort(pixels, kind='stable')[::-1][: min(count, _FRAMES_OF_CLASS)]
        names = [valid[place].files.name for place in order]
        captions = [f'{name}: {pixels[place]} pixels' for name, place in zip(names, order, strict=True)]
        head = f'{scheme.classes[index]} ({count} frames)'
        sections.append(_grid(head, inspection, names, scheme, captions))
    return ''.join(sections)


def _leak_table(leaks: Sequence[Leak]) -> str:
    """How well each split's held-out frames are predicted by copying."""
    if not leaks:
        return '<h2>Leaks</h2><p>Not measured: too few valid frames for a split.</p>'
    rows = [
        (one.split, one.part, len(one.frames), one.train_frames)
        + tuple(f'{value:.1f}' for value in (one.same_drive, one.agreement, one.miou))
        for one in leaks
    ]
    head = ('split', 'part', 'frames', 'train frames', 'nearest of the same drive, %', 'pixels agree, %')
    return (
        '<h2>Leaks</h2><p>Each frame gets the label of the training frame whose image is nearest (L2 of '
        '40x30 thumbnails); no network is involved. A model reaches this score by remembering alone.</p>'
        + _table((*head, 'mIoU, %'), rows)
    )
