"""Our network beside other systems of its kind and beside what the machine can do, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..engine import device as devices
from .floors import Cost, convolution_costs, count_flop, machine_works, synchronised
from .own_ways import EAGER, Own, export_files, forward_ways, label_map_ways, make_own, training_ways
from .peak import measure_memory
from .rivals import (
    MMSEG,
    NUM_CLASSES,
    S5_D16,
    System,
    mmseg_config,
    mmseg_system,
    padded_side,
    smp_systems,
)
from .rounds import Seconds, Show, alternate, spread
from .shares import Turns, machine_rates, ratios, summarise
from .subject import drawn_frames

# A compiled network is compiled in the first turn, and what it compiled is settled by the second.
_WARM = 2
# The default of mmseg takes fifteen times as long; its ratio needs no more.
_SLOW_ROUNDS = 3
_CROPS = 2
Turn = Callable[[], Seconds]


@dataclass
class Plan:
    """What is measured.

    Attributes:
        size: (height, width) of frames.
        base_channels: Of ours and of mmseg's network beside it.
        batches: Batch sizes.
        device: As on a command line, None for the best there is.
        rounds: Turns of each.
        starts: Fresh processes of each for its memory, 0 for none.
        compiled: Whether to compile ours too.
        smp_folder: Where else to look for segmentation_models.pytorch.
    """

    size: tuple[int, int]
    base_channels: int
    batches: tuple[int, ...]
    device: str | None
    rounds: int
    starts: int
    compiled: bool
    smp_folder: Path | None


def measure(plan: Plan, show: Show) -> dict:
    """Every figure, for JSON; ``show`` wraps the rounds, given how many there are and what is done.

    Raises:
        InputError: If there is no such device, or the size is too small to draw.
    """
    devices.choose_device(plan.device)
    device = devices.device_name(plan.device)
    (frame,) = drawn_frames(1, plan.size)
    with tempfile.TemporaryDirectory() as folder:
        own = make_own(plan.size, plan.base_channels, device, Path(folder), plan.compiled)
        systems, missing = _systems(plan, own)
        sides = tuple(padded_side(side) for side in plan.size)
        crop = tuple(padded_side(-(-side // 2)) for side in plan.size)
        images = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(0)).to(device)
        bench = _Bench(plan, device, systems, missing, show)
        figures = dict(
            settings=asdict(plan)
            | dict(device=device, network_size=sides, crop_size=crop, smp_folder=str(plan.smp_folder)),
            systems=_describe(systems, (1, 3, *sides)) | missing,
            forward=bench.forward(forward_ways(own, images), images),
            label_map=bench.label_maps(label_map_ways(own), frame),
            training=bench.training(training_ways(own), (_CROPS, 3, *crop)),
            batches=bench.batches(images),
        )
        if plan.starts:
            models = _models_of_processes(own, plan)
            figures['memory'] = measure_memory(models, MMSEG, frame, device, plan.starts, show)
    return figures


def _systems(plan: Plan, own: Own) -> tuple[dict[str, System], dict[str, str]]:
    """The systems by name, ours first; and why others are not among them."""
    smp = smp_systems(own.device, plan.smp_folder)
    systems = {
        EAGER: own.system(),
        MMSEG: mmseg_system(MMSEG, mmseg_config(plan.base_channels), own.device),
        **{name: found for name, found in smp.items() if isinstance(found, System)},
        S5_D16: mmseg_system(S5_D16, mmseg_config(64, is_default=True), own.device),
    }
    return systems, {name: found for name, found in smp.items() if isinstance(found, str)}


def _describe(systems: dict[str, System], size: tuple[int, ...]) -> dict[str, dict]:
    """Parameters, GFLOP of an image, and classes of each."""
    return {
        name: dict(
            parameters=sum(weights.numel() for weights in system.model.parameters()),
            gflop=count_flop(system.model, system.logits, size) / 1e9,
            classes=system.logits(system.model, torch.zeros(1, 3, 32, 32).to(_place(system.model))).shape[1],
        )
        for name, system in systems.items()
    }


def _models_of_processes(own: Own, plan: Plan) -> dict[str, str]:
    """What `peak.grown` takes by name; on a GPU no exported files: PyTorch does not see their memory."""
    models = {EAGER: own.checkpoint}
    if own.device == 'cpu':
        models |= export_files(own)
    for name, config in (
        (MMSEG, mmseg_config(plan.base_channels)),
        (S5_D16, mmseg_config(64, is_default=True)),
    ):
        models[name] = str(own.folder / f'{name}.py')
        config.dump(models[name])
    return models


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@dataclass
class _Bench:
    """What all measurements share."""

    plan: Plan
    device: str
    systems: dict[str, System]
    missing: dict[str, str]
    show: Show

    def forward(self, own_ways: dict[str, Callable | str], images: Tensor) -> dict:
        """Normalised images to logits."""
        ways = own_ways | {
            name: _inferring(system, images) for name, system in self.systems.items() if name != EAGER
        }
        return self._compare(ways, 'forward', tuple(images.shape))

    def label_maps(self, own_ways: dict[str, Callable | str], frame: np.ndarray) -> dict:
        """A frame to its label map, each by its own public path."""
        torch.compiler.reset()
        paths = own_ways | {name: system.label_map for name, system in self.systems.items() if name != EAGER}
        ways = {
            name: path if isinstance(path, str) else lambda path=path: path(frame)
            for name, path in paths.items()
        }
        return self._compare(ways, 'frame to label map')

    def training(self, own_models: dict[str, nn.Module | str], size: tuple[int, ...]) -> dict:
        """Steps on crops (N, 3, h, w): loss, backward, SGD; with float16 on a GPU."""
        torch.compiler.reset()
        images = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(self.device)
        samples = _samples(size, self.device)
        models = own_models | {name: system.model for name, system in self.systems.items() if name != EAGER}
        ways: dict[str, Callable | str] = {}
        for name, model in models.items():
            loss = self.systems.get(name, self.systems[EAGER]).loss
            ways[name] = model if isinstance(model, str) else _stepping(model, loss, images, samples)
        found = self._compare(ways, 'training step', size, training=True)
        for system in self.systems.values():
            system.model.eval()
        return found

    def batches(self, images: Tensor) -> dict:
        """Images a second by batch size, ours and mmseg's, and how many times as many ours does."""
        found = {}
        for number in self.plan.batches:
            batch = images.expand(number, -1, -1, -1).contiguous()
            works = {
                name: synchronised(_inferring(self.systems[name], batch), self.device)
                for name in (EAGER, MMSEG)
            }
            turns = self._turns(works, self.plan.rounds, f'batches of {number}')
            found[str(number)] = dict(
                images_a_second={
                    name: spread(number / turn.wall for turn in taken) for name, taken in turns.items()
                },
                times_mmseg=ratios(turns[MMSEG], turns[EAGER]),
            )
        return found

    def _turns(self, works: dict[str, Turn], rounds: int, what: str) -> Turns:
        found = alternate(rounds + _WARM, works, self.show, what)
        return {name: turns[_WARM:] for name, turns in found.items()}

    def _compare(
        self,
        ways: dict[str, Callable | str],
        what: str,
        size: tuple[int, ...] | None = None,
        training: bool = False,
    ) -> dict:
        """Ways in turn with each other and with the machine's own work; the slow one in few rounds.

        Args:
            ways: What is timed, or why it is not.
            what: Is done.
            size: Of the images whose arithmetic is compared with the machine's, if so.
            training: Whether a turn is a training step.
        """
        is_half = training and self.device.startswith('cuda')
        works = {
            name: synchronised(way, self.device) for name, way in ways.items() if not isinstance(way, str)
        }
        costs, machine = {}, {}
        if size is not None:
            costs = {name: self._costs(name, size, 2 if is_half else 4) for name in works}
            machine = machine_works(self.device, torch.float16 if is_half else torch.float32)
        slow = works.pop(S5_D16)
        turns = self._turns(works | machine, self.plan.rounds, what)
        rows = summarise(turns, costs, training)
        few = {MMSEG: works[MMSEG], S5_D16: slow} | machine
        few_turns = self._turns(few, min(self.plan.rounds, _SLOW_ROUNDS), f'{what}, {S5_D16}')
        rows[S5_D16] = summarise(few_turns, costs, training)[S5_D16]
        in_order = {name: rows.get(name, way) for name, way in ways.items()}
        return dict(rows=in_order | self.missing, machine=machine_rates(turns) if machine else None)

    def _costs(self, name: str, size: tuple[int, ...], number_bytes: int) -> list[Cost]:
        """Of a system's convolutions, or of ours, whichever way it is run."""
        system = self.systems.get(name, self.systems[EAGER])
        return convolution_costs(system.model, system.logits, size, number_bytes)


def _inferring(system: System, images: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            system.logits(system.model, images)

    return run


def _samples(size: tuple[int, ...], device: str) -> list[SegDataSample]:
    """Data samples of random labels."""
    number, _, *sides = size
    labels = torch.randint(NUM_CLASSES, (number, 1, *sides), generator=torch.Generator().manual_seed(0))
    meta = dict(img_shape=tuple(sides), ori_shape=tuple(sides), pad_shape=tuple(sides))
    return [
        SegDataSample(metainfo=dict(meta), gt_sem_seg=PixelData(data=label)) for label in labels.to(device)
    ]


def _stepping(model: nn.Module, loss: Callable, images: Tensor, samples: list) -> Callable[[], object]:
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
