"""Our network, mmseg's, segmentation_models.pytorch's and the machine's own rate, taking turns in one run.

python benchmarks/model.py --json model.json --plot model.png
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmseg_unet_lyft.compat import require_stack

require_stack()
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from prettytable import PrettyTable
from torch import Tensor, nn

from benchmarks import memory
from benchmarks import roofline as roof
from benchmarks import systems as known
from benchmarks.common import add_size, alternate, at_least, script
from benchmarks.systems import EAGER, MMSEG, S5_D16, Own, System
from mmseg_unet_lyft.cli.console import CommandParser
from mmseg_unet_lyft.engine import device as devices
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.inference.latency import Show, spread, synthetic_frames, with_spread

# A compiled network is compiled in the first turn, and what it compiled is settled by the second.
_WARM = 2
# The default of mmseg takes fifteen times as long; its ratio needs no more.
_SLOW_ROUNDS = 3
_CROPS = 2


def add_options(parser: CommandParser) -> None:
    """Add what is special to this benchmark."""
    add_size(parser, 600, 800, 'of a frame')
    parser.add_argument('--base-channels', type=at_least(1), default=16, help="of ours and mmseg's (16)")
    parser.add_argument('--batches', type=at_least(1), nargs='+', default=[1, 2, 4], help='sizes (1 2 4)')
    parser.add_argument('--starts', type=at_least(0), default=3, help='fresh processes for memory (3)')
    parser.add_argument('--no-compile', action='store_true', help='leave torch.compile out')
    parser.add_argument('--smp', type=Path, metavar='FOLDER', help='where segmentation_models_pytorch lies')


def measure(args: argparse.Namespace, show: Show) -> dict:
    """Every figure, for JSON; ``show`` wraps the rounds."""
    if args.smp and not args.smp.is_dir():
        raise InputError(f'--smp {args.smp}: no such folder; give what pip install --target was given')
    devices.choose_device(args.device)
    device, size = devices.device_name(args.device), (args.height, args.width)
    (frame,) = synthetic_frames(1, size)
    with tempfile.TemporaryDirectory() as folder:
        own = known.make_own(size, args.base_channels, device, Path(folder), not args.no_compile)
        systems = {
            EAGER: own.system(),
            MMSEG: known.mmseg_system(known.mmseg_config(args.base_channels), device),
            **known.smp_systems(device, args.smp),
            S5_D16: known.mmseg_system(known.mmseg_config(64, is_default=True), device),
        }
        sides = tuple(known.padded_side(side) for side in size)
        crop = tuple(known.padded_side(-(-side // 2)) for side in size)
        images = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(0)).to(device)
        bench = Bench(device, args.rounds, systems, show)
        settings = dict(size=size, network_size=sides, crop_size=crop, compiled=not args.no_compile)
        for name in ('base_channels', 'batches', 'rounds', 'starts'):
            settings[name] = getattr(args, name)
        figures = dict(
            settings=dict(settings, device=device),
            systems=describe(bench.systems, (1, 3, *sides)) | bench.missing,
            forward=bench.forward(known.forward_ways(own, images), images),
            label_map=bench.label_maps(known.label_map_ways(own), frame),
            training=bench.training(known.training_ways(own), (_CROPS, 3, *crop)),
            batches=bench.batches(args.batches, images),
        )
        if args.starts:
            models = models_of_processes(own, args.base_channels)
            figures['memory'] = measure_memory(models, MMSEG, frame, device, args.starts, show)
    return figures


def describe(systems: dict[str, System], size: tuple[int, ...]) -> dict[str, dict]:
    """Parameters and GFLOP of an image of each."""
    return {
        name: dict(
            parameters=sum(weights.numel() for weights in system.model.parameters()),
            gflop=roof.count_flop(system.model, system.logits, size) / 1e9,
        )
        for name, system in systems.items()
    }


class Bench:
    """What all measurements share: the device, the rounds, the systems or why they are missing, progress."""

    def __init__(self, device: str, rounds: int, systems: dict[str, System | str], show: Show) -> None:
        self.device, self.rounds, self.show = device, rounds, show
        self.systems = {name: one for name, one in systems.items() if isinstance(one, System)}
        self.missing = {name: reason for name, reason in systems.items() if isinstance(reason, str)}
        self.others = {name: system for name, system in self.systems.items() if name != EAGER}

    def forward(self, own_ways: dict[str, Callable | str], images: Tensor) -> dict:
        """Normalised images to logits."""
        ways = own_ways | {name: inferring(system, images) for name, system in self.others.items()}
        return self._compare(ways, 'forward', tuple(images.shape))

    def label_maps(self, own_ways: dict[str, Callable | str], frame: np.ndarray) -> dict:
        """A frame to its label map, each by its own public API."""
        torch.compiler.reset()
        paths = own_ways | {name: system.label_map for name, system in self.others.items()}
        ways = {
            name: path if isinstance(path, str) else lambda path=path: path(frame)
            for name, path in paths.items()
        }
        return self._compare(ways, 'frame to label map')

    def training(self, own_models: dict[str, nn.Module | str], size: tuple[int, ...]) -> dict:
        """Steps on crops (N, 3, h, w): loss, backward, SGD; with float16 on a GPU."""
        torch.compiler.reset()
        images = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(self.device)
        samples = random_samples(size, self.device)
        models = own_models | {name: system.model for name, system in self.others.items()}
        ways: dict[str, Callable | str] = {}
        for name, model in models.items():
            loss = self.systems.get(name, self.systems[EAGER]).loss
            ways[name] = model if isinstance(model, str) else stepping(model, loss, images, samples)
        found = self._compare(ways, 'training step', size, training=True)
        for system in self.systems.values():
            system.model.eval()
        return found

    def batches(self, sizes: Sequence[int], images: Tensor) -> dict:
        """Images a second by batch size, ours and mmseg's, and how many times as many ours does."""
        found = {}
        for number in sizes:
            batch = images.expand(number, -1, -1, -1).contiguous()
            works = {
                name: roof.synchronised(inferring(self.systems[name], batch), self.device)
                for name in (EAGER, MMSEG)
            }
            turns = self._turns(works, self.rounds, f'batches of {number}')
            found[str(number)] = dict(
                images_a_second={
                    name: spread(number / turn.wall for turn in taken) for name, taken in turns.items()
                },
                times_mmseg=roof.ratios(turns[MMSEG], turns[EAGER]),
            )
        return found

    def _turns(self, works: dict[str, Callable], rounds: int, what: str) -> roof.Turns:
        found = alternate(rounds + _WARM, works, self.show, what)
        return {name: turns[_WARM:] for name, turns in found.items()}

    def _compare(
        self,
        ways: dict[str, Callable | str],
        what: str,
        size: tuple[int, ...] | None = None,
        training: bool = False,
    ) -> dict:
        """Ways in turn with each other, the slow one in few rounds.

        With the size of the images also in turn with the machine's own work, and their arithmetic counted.
        """
        is_half = training and self.device.startswith('cuda')
        works = {
            name: roof.synchronised(way, self.device)
            for name, way in ways.items()
            if not isinstance(way, str)
        }
        costs, machine = {}, {}
        if size is not None:
            for name in works:
                # Of a system's convolutions, or of ours, whichever way it is run.
                system = self.systems.get(name, self.systems[EAGER])
                number_bytes = 2 if is_half else 4
                costs[name] = roof.convolution_costs(system.model, system.logits, size, number_bytes)
            machine = roof.machine_works(self.device, torch.float16 if is_half else torch.float32)
        slow = works.pop(S5_D16)
        turns = self._turns(works | machine, self.rounds, what)
        rows = roof.summarise(turns, MMSEG, costs, training)
        few = {MMSEG: works[MMSEG], S5_D16: slow} | machine
        few_turns = self._turns(few, min(self.rounds, _SLOW_ROUNDS), f'{what}, {S5_D16}')
        rows[S5_D16] = roof.summarise(few_turns, MMSEG, costs, training)[S5_D16]
        in_order = {name: rows.get(name, way) for name, way in ways.items()}
        return dict(rows=in_order | self.missing, machine=roof.machine_rates(turns) if machine else None)


def inferring(system: System, images: Tensor) -> Callable[[], object]:
    """A forward pass."""
    return torch.inference_mode()(lambda: system.logits(system.model, images))


def random_samples(size: tuple[int, ...], device: str) -> list[SegDataSample]:
    """Data samples of random labels."""
    number, _, *sides = size
    labels = torch.randint(known.NUM_CLASSES, (number, 1, *sides), generator=torch.Generator().manual_seed(0))
    meta = dict(img_shape=tuple(sides), ori_shape=tuple(sides), pad_shape=tuple(sides))
    return [
        SegDataSample(metainfo=dict(meta), gt_sem_seg=PixelData(data=label)) for label in labels.to(device)
    ]


def stepping(model: nn.Module, loss: Callable, images: Tensor, samples: list) -> Callable[[], object]:
    """A training step; the model learns on from turn to turn."""
    on_gpu = images.is_cuda
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler('cuda', enabled=on_gpu)

    def run() -> None:
        with torch.autocast('cuda', torch.float16, enabled=on_gpu):
            value = loss(model, images, samples)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return run


def models_of_processes(own: Own, base_channels: int) -> dict[str, str]:
    """What `memory.grown` takes, by name; on a GPU no exported files: PyTorch does not see their memory."""
    models = {EAGER: own.checkpoint}
    if own.device == 'cpu':
        models |= known.export_files(own)
    configs = {MMSEG: known.mmseg_config(base_channels), S5_D16: known.mmseg_config(64, is_default=True)}
    for name, config in configs.items():
        models[name] = str(own.folder / f'{name}.py')
        config.dump(models[name])
    return models


def measure_memory(
    models: dict[str, str], base: str, frame: np.ndarray, device: str, rounds: int, show: Show
) -> dict:
    """MiB by which a fresh process grows at most while it labels a BGR frame, and as a share of the base's.

    A reason in place of both where it cannot be measured here.
    """
    reason = memory.problem(device)
    if reason:
        return dict.fromkeys(models, reason)
    found: dict[str, list[int]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'frame.npy'
        np.save(path, frame)
        for _ in show(range(rounds), rounds, 'memory'):
            for name, model in models.items():
                found[name].append(memory.grown(model, str(path), device))
    return {
        name: dict(
            mib=spread(taken, 1 / 2**20),
            share=spread(one / other for one, other in zip(taken, found[base], strict=True)),
        )
        for name, taken in found.items()
    }


def table(figures: dict) -> str:
    """Every measurement as a table: medians (least-most)."""
    settings = figures['settings']
    height, width = settings['size']
    network, crop = ('x'.join(map(str, settings[key])) for key in ('network_size', 'crop_size'))
    names = list(next(iter(figures['batches'].values()))['images_a_second'])
    batch_columns = [f'batch of {network}', *(f'{name}, images a second' for name in names), 'x mmseg']
    parts = [
        f'{settings["base_channels"]} channels, {settings["device"]}, {settings["rounds"]} rounds in turn',
        'median (least-most); x mmseg: times as fast as mmseg UNet',
        _rows_table(figures['systems'], ['network', 'parameters', 'GFLOP'], _system_cells),
        f'forward: normalised images of {network} to logits (mmseg and smp take multiples of 16 alone)',
        _rates_table(figures['forward']),
        f'frame of {height}x{width} to label map, each by its own public API',
        _rows_table(figures['label_map']['rows'], ['way', 'ms', 'x mmseg'], _time_cells),
        f'training step: {_CROPS} crops of {crop}, cross-entropy, SGD',
        _rates_table(figures['training']),
        _rows_table(figures['batches'], batch_columns, _batch_cells),
    ]
    if 'memory' in figures:
        parts.append('memory of labelling, beyond the loaded model')
        parts.append(_rows_table(figures['memory'], ['way', 'MiB', 'of mmseg UNet'], _memory_cells))
    return '\n'.join(parts)


def _rows_table(entries: dict, columns: list[str], cells: Callable[[dict], list[str]]) -> str:
    """A row of cells for each entry, or its reason."""
    rows = PrettyTable(columns, align='r')
    rows.align[columns[0]] = 'l'
    for name, entry in entries.items():
        texts = [entry] if isinstance(entry, str) else cells(entry)
        rows.add_row([name, *texts, *[''] * (len(columns) - 1 - len(texts))])
    return rows.get_string()


def _system_cells(entry: dict) -> list[str]:
    return [f'{entry["parameters"]:,}', f'{entry["gflop"]:.4g}']


def _time_cells(entry: dict) -> list[str]:
    milliseconds = {key: 1e3 * value for key, value in entry['seconds'].items()}
    return [with_spread(milliseconds), with_spread(entry['times_mmseg'], 2)]


def _rate_cells(entry: dict) -> list[str]:
    shares = [with_spread(share, 2) for share in entry['share_of_rate'].values()]
    least = [f'{1e3 * seconds:.1f}' for seconds in entry['roofline_seconds'].values()]
    return [*_time_cells(entry), *shares, *least, f'{entry["share_of_roofline"]:.2f}']


def _batch_cells(entry: dict) -> list[str]:
    return [with_spread(found, 2) for found in (*entry['images_a_second'].values(), entry['times_mmseg'])]


def _memory_cells(entry: dict) -> list[str]:
    return [with_spread(entry['mib']), with_spread(entry['share'], 2)]


def _rates_table(section: dict) -> str:
    """With the machine's rates."""
    columns = ['way', 'ms', 'x mmseg', f'of {roof.MATRIX}', f'of {roof.POINTWISE}']
    columns += ['roofline, ms: arithmetic', 'memory', 'both', 'reached']
    units = {roof.MATRIX: 'GFLOP/s', roof.POINTWISE: 'GFLOP/s', roof.COPY: 'GB/s'}
    rates = ', '.join(f'{name} {section["machine"][name] / 1e9:.4g} {unit}' for name, unit in units.items())
    return f'{_rows_table(section["rows"], columns, _rate_cells)}\nmachine: {rates}'


def save_plot(path: Path, figures: dict) -> None:
    """Draw the ratios as one PNG: bars to the medians, whiskers from least to most, a panel a measurement."""
    times, settings = itemgetter('times_mmseg'), figures['settings']
    drawn = {
        f'forward, share of the {roof.MATRIX} rate': (
            figures['forward']['rows'],
            lambda entry: entry['share_of_rate'][roof.MATRIX],
        ),
        'frame to label map, times as fast as mmseg UNet': (figures['label_map']['rows'], times),
        'training step, times as fast as mmseg UNet': (figures['training']['rows'], times),
        'memory of labelling, share of mmseg UNet': (figures.get('memory', {}), itemgetter('share')),
    }
    bars = {
        title: {name: ratio(one) for name, one in rows.items() if not isinstance(one, str)}
        for title, (rows, ratio) in drawn.items()
    }
    bars = {title: found for title, found in bars.items() if found}
    counts = [len(found) for found in bars.values()]
    figure = Figure(figsize=(9, 1.0 + 0.32 * sum(counts) + 0.8 * len(counts)), layout='constrained')
    axes = figure.subplots(len(bars), 1, height_ratios=counts, squeeze=False)[:, 0]
    for axis, (title, found) in zip(axes, bars.items(), strict=True):
        medians = [ratio['median'] for ratio in found.values()]
        ends = [[abs(ratio[end] - ratio['median']) for ratio in found.values()] for end in ('least', 'most')]
        colours = ['tab:blue' if name.startswith('ours') else '0.7' for name in found]
        axis.barh(range(len(found)), medians, color=colours, xerr=ends, ecolor='black', capsize=3)
        axis.set_yticks(range(len(found)), list(found), fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis='x', alpha=0.3)
        axis.set_title(title, loc='left', fontsize=10)
        for place, median in enumerate(medians):
            # Right of the panel, where no whisker crosses it.
            axis.text(1.01, place, f'{median:.2f}', transform=axis.get_yaxis_transform(), va='center')
    height, width = settings['size']
    what = f'U-Net, {settings["base_channels"]} channels, frames of {height}x{width}, {settings["device"]}'
    figure.suptitle(f'{what}\nbars: medians; whiskers: least and most', fontsize=10)
    figure.savefig(path, dpi=100)


main = script(__doc__, 20, add_options, measure, table, save_plot)

if __name__ == '__main__':
    sys.exit(main())
