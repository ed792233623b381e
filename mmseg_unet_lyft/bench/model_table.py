"""What `bench.model` found, as tables and as bars, with the aims of issue 6 beside it."""

from __future__ import annotations

from pathlib import Path

from prettytable import PrettyTable

from ..report.speed_plot import Bar, save_speed_plot
from .floors import COPY, MATRIX, POINTWISE
from .own_ways import COMPILED, EAGER, ONNX, OPENVINO
from .rounds import with_spread

# Issue 6: on two CPU cores, 16 channels, frames of 600x800.
_FORWARD = {EAGER: 0.72, COMPILED: 0.85, ONNX: 0.85, OPENVINO: 0.95}  # Of the rate of `MATRIX`.
_LABEL_MAP = {EAGER: 1.7, COMPILED: 2.0, ONNX: 1.9, OPENVINO: 2.3}
_TRAINING = dict(cpu=1.3, cuda=1.5)
_MEMORY = {EAGER: 0.6}


def aims(device: str) -> dict[str, dict[str, float]]:
    """By measurement and way; the issue has one alone for a GPU."""
    kind = device.partition(':')[0]
    training = dict.fromkeys((EAGER, COMPILED), _TRAINING.get(kind))
    if kind != 'cpu':
        return dict(forward={}, label_map={}, training=training, memory={})
    return dict(forward=_FORWARD, label_map=_LABEL_MAP, training=training, memory=_MEMORY)


def table(figures: dict) -> str:
    """Every measurement as a table: medians (least-most)."""
    settings = figures['settings']
    height, width = settings['size']
    network, crop = ('x'.join(map(str, settings[key])) for key in ('network_size', 'crop_size'))
    wanted = aims(settings['device'])
    parts = [
        f'{settings["base_channels"]} channels, {settings["device"]}, {settings["rounds"]} rounds in turn',
        'median (least-most); x mmseg: times as fast as mmseg UNet',
        _systems_table(figures['systems']),
        f'forward: normalised images of {network} to logits (mmseg and smp take multiples of 16 alone)',
        _rates_table(figures['forward'], wanted['forward'], 'share'),
        f'frame of {height}x{width} to label map, each by its own public path',
        _times_table(figures['label_map'], wanted['label_map']),
        f'training step: 2 crops of {crop}, cross-entropy, SGD',
        _rates_table(figures['training'], wanted['training'], 'times'),
        _batches_table(figures['batches'], network),
    ]
    if 'memory' in figures:
        parts += ['memory of labelling, beyond the loaded model', _memory_table(figures['memory'], wanted)]
    return '\n'.join(parts)


def _new(*columns: str) -> PrettyTable:
    rows = PrettyTable(list(columns), align='r')
    rows.align[columns[0]] = 'l'
    return rows


def _systems_table(systems: dict) -> str:
    rows = _new('network', 'parameters', 'GFLOP')
    for name, entry in systems.items():
        is_there = not isinstance(entry, str)
        rows.add_row(
            [name, f'{entry["parameters"]:,}', f'{entry["gflop"]:.4g}'] if is_there else [name, entry, '']
        )
    return rows.get_string()


def _rates_table(section: dict, wanted: dict[str, float], aimed: str) -> str:
    """With the machine's rates; the aim is of the share of `MATRIX`, or of the times."""
    columns = ['ms', 'x mmseg', *(['aim'] if aimed == 'times' else [])]
    columns += [f'of {MATRIX}', *(['aim'] if aimed == 'share' else []), f'of {POINTWISE}']
    rows = _new('way', *columns, 'floor, ms: arithmetic', 'memory', 'both', 'reached')
    for name, entry in section['rows'].items():
        if isinstance(entry, str):
            rows.add_row([name, entry, *[''] * (len(columns) + 3)])
            continue
        cells = {
            'ms': with_spread(_milli(entry['seconds'])),
            'x mmseg': with_spread(entry['times_mmseg'], 2),
            'aim': wanted.get(name) or '',
        }
        for product in (MATRIX, POINTWISE):
            cells[f'of {product}'] = with_spread(entry['share_of_rate'][product], 2)
        floor = [f'{1e3 * seconds:.1f}' for seconds in entry['floor_seconds'].values()]
        rows.add_row([name, *(cells[key] for key in columns), *floor, f'{entry["share_of_floor"]:.2f}'])
    rates = section['machine']
    return (
        f'{rows.get_string()}\nmachine: {MATRIX} {rates[MATRIX] / 1e9:.0f} GFLOP/s, {POINTWISE} '
        f'{rates[POINTWISE] / 1e9:.0f} GFLOP/s, copy {rates[COPY] / 1e9:.1f} GB/s'
    )


def _milli(seconds: dict[str, float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in seconds.items()}


def _times_table(section: dict, wanted: dict[str, float]) -> str:
    rows = _new('way', 'ms', 'x mmseg', 'aim')
    for name, entry in section['rows'].items():
        if isinstance(entry, str):
            rows.add_row([name, entry, '', ''])
            continue
        times = with_spread(entry['times_mmseg'], 2)
        rows.add_row([name, with_spread(_milli(entry['seconds'])), times, wanted.get(name) or ''])
    return rows.get_string()


def _batches_table(batches: dict, network: str) -> str:
    systems = list(next(iter(batches.values()))['images_a_second'])
    rows = _new(f'batch of {network}', *(f'{name}, images a second' for name in systems), 'x mmseg')
    for number, entry in batches.items():
        cells = [with_spread(entry['images_a_second'][name], 2) for name in systems]
        rows.add_row([number, *cells, with_spread(entry['times_mmseg'], 2)])
    return rows.get_string()


def _memory_table(memory: dict, wanted: dict) -> str:
    rows = _new('way', 'MiB', 'of mmseg UNet', 'aim')
    for name, entry in memory.items():
        if isinstance(entry, str):
            rows.add_row([name, entry, '', ''])
            continue
        aim = wanted['memory'].get(name) or ''
        rows.add_row([name, with_spread(entry['mib']), with_spread(entry['share'], 2), aim])
    return rows.get_string()


def panels(figures: dict) -> dict[str, list[Bar]]:
    """The ratios that have aims, and their systems, by panel of a plot."""
    wanted = aims(figures['settings']['device'])
    found = {
        f'forward, share of the {MATRIX} rate': [
            Bar(name, entry['share_of_rate'][MATRIX], wanted['forward'].get(name))
            for name, entry in _measured(figures['forward']['rows'])
        ]
    }
    for key, title in (('label_map', 'frame to label map'), ('training', 'training step')):
        found[f'{title}, times as fast as mmseg UNet'] = [
            Bar(name, entry['times_mmseg'], wanted[key].get(name))
            for name, entry in _measured(figures[key]['rows'])
        ]
    memory = _measured(figures.get('memory', {}))
    if memory:
        found['memory of labelling, share of mmseg UNet'] = [
            Bar(name, entry['share'], wanted['memory'].get(name)) for name, entry in memory
        ]
    return found


def _measured(rows: dict) -> list[tuple[str, dict]]:
    return [(name, entry) for name, entry in rows.items() if not isinstance(entry, str)]


def save_plot(path: Path, figures: dict) -> Path:
    """Draw the `panels` as a PNG, and return its path."""
    settings = figures['settings']
    height, width = settings['size']
    what = f'U-Net, {settings["base_channels"]} channels, frames of {height}x{width}, {settings["device"]}'
    save_speed_plot(path, panels(figures), what)
    return path
