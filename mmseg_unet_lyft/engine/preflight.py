"""Every problem of config, data and weights that can be known before a run starts, told at once."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry import DefaultScope

from .. import register  # noqa: F401  (names are looked up in the registries)
from ..errors import InputError, input_error_behind
from . import preflight_config, preflight_data, preflight_loader, preflight_model
from .checkpoint import check_weights, fitting_weights, read_weights


class Findings:
    """What was found so far.

    Args:
        where: The config's file, which is named where the problem is in it.

    Attributes:
        problems: What has to be mended before the run may start.
        notes: What is allowed, but worth a line.
    """

    def __init__(self, where: str | None = None) -> None:
        self._where = where
        self._of_config: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def collecting(self, of_config: bool = False) -> Iterator[None]:
        """Within it, an InputError is taken as a problem, of the config if so said, and ends the block."""
        before = len(self.problems)
        try:
            yield
        except ValueError as error:
            # Registries may wrap what a constructor raised.
            mistake = input_error_behind(error)
            if mistake is None:
                raise
            self.problems.append(str(mistake))
        if of_config:
            self._of_config.update(self.problems[before:])

    def add(self, problems: Iterable[str], of_config: bool = False) -> bool:
        """Take a check's problems, as in `collecting`, and an InputError that ends it; True if none."""
        before = len(self.problems)
        with self.collecting(of_config):
            # Not `extend`: what came before an error is kept.
            for problem in problems:
                self.problems.append(problem)
        return len(self.problems) == before

    def require_none(self) -> None:
        """Raise an InputError with all problems, each once."""
        problems = list(dict.fromkeys(self.problems))
        is_told = not self._where or any(self._where in problem for problem in problems)
        where = '' if is_told or self._of_config.isdisjoint(problems) else f'{self._where}: '
        if len(problems) == 1:
            raise InputError(f'{where}{problems[0]}')
        if problems:
            listed = (f'  - {textwrap.indent(problem, "    ").lstrip()}' for problem in problems)
            head = f'{where}{len(problems)} problems, found before the first step:'
            raise InputError('\n'.join([head, *listed]))


def check_run(
    config: Config,
    loaders: Sequence[str],
    load_from: str | None = None,
    strict: bool = False,
    trust: bool = False,
) -> list[str]:
    """Look for everything that would stop or spoil a run, in about a second.

    Args:
        config: The whole config; with ``resume``, all weights of ``load_from`` have to be the network's.
        loaders: ``'train_dataloader'`` and others whose frames are read. With ``'test_dataloader'`` it is a
            test. Those that are None, or of data sets that are not ours, are passed over.
        load_from: A checkpoint that the run takes its weights from.
        strict: Whether all of them have to be the network's, as in a test they do.
        trust: As in `read_checkpoint`.

    Returns:
        Lines on what is allowed, but worth knowing.

    Raises:
        InputError: If there are problems; the message lists all of them.
    """
    findings = Findings(config.filename)
    trains = 'test_dataloader' not in loaders
    used = loaders if trains else ('test_dataloader',)
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmseg'):
        _look_at_parts(config, [*loaders, *used], findings)
        is_sound = findings.add(
            preflight_config.type_problems(config, preflight_config.built_keys(used)), of_config=True
        )
        is_sound = findings.add(preflight_config.number_problems(config, used), of_config=True) and is_sound
        is_sound = findings.add(preflight_config.head_problems(config), of_config=True) and is_sound
        findings.add(preflight_config.temporary_folder_problems(config, used))
        if trains:
            findings.notes += preflight_config.schedule_notes(config)
        _look_at_data(config, loaders, used, findings)
        others = ('val', 'test') if trains else ('test',)
        findings.add(preflight_data.overlap_problems(config, others, findings.notes))
        remedy = preflight_model.STRICT_REMEDY if strict else None
        if not trains:
            remedy = preflight_model.TEST_REMEDY
        elif config.get('resume') and config.get('load_from'):
            load_from, remedy = config.load_from, preflight_model.RESUME_REMEDY
        _look_at_network(config, trains, load_from, trust, remedy, is_sound, findings)
    findings.require_none()
    return findings.notes


def check_data(config: Config, *loaders: str) -> None:
    """As `check_run`, for what reads the loaders' frames and runs no network."""
    findings = Findings(config.filename)
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmseg'):
        _look_at_parts(config, loaders, findings)
        findings.add(preflight_config.number_problems(config, loaders), of_config=True)
        _look_at_data(config, loaders, loaders, findings)
    findings.require_none()


def _look_at_parts(config: Config, loaders: Iterable[str], findings: Findings) -> None:
    """Raise an InputError for parts that the other checks cannot read."""
    if not findings.add(preflight_config.part_problems(config, dict.fromkeys(loaders)), of_config=True):
        findings.require_none()


def _look_at_data(config: Config, loaders: Iterable[str], built: Iterable[str], findings: Findings) -> None:
    """Take what is wrong with the frames of loaders, and with those loaders that are to be built."""
    if 'train_dataloader' in built:
        findings.add(preflight_config.batch_problems(config), of_config=True)
    for loader in loaders:
        knows_types = loader in built and findings.add(
            preflight_config.type_problems(config, [loader]), of_config=True
        )
        if not preflight_data.is_ours(config, loader):
            continue
        findings.add(preflight_config.scheme_problems(config, loader), of_config=True)
        frames = preflight_data.Frames(config[loader].dataset)
        if findings.add(frames.find()):
            findings.add(frames.problems())
        if knows_types:
            findings.add(
                preflight_loader.loader_problems(config, loader, frames, findings.notes), of_config=True
            )


def _look_at_network(
    config: Config,
    trains: bool,
    load_from: str | None,
    trust: bool,
    remedy: str | None,
    can_build: bool,
    findings: Findings,
) -> None:
    """Take what is wrong with the network, the weights for it, and the room for its checkpoints.

    Args:
        config: The whole config.
        trains: Whether the run leaves checkpoints.
        load_from: A checkpoint to take the weights from.
        trust: As in `read_checkpoint`.
        remedy: What to do if not all of them fit; None where any that fit will do.
        can_build: Whether the network's config is sound so far.
        findings: Gets them.
    """
    weights = model = None
    if load_from:
        with findings.collecting():
            weights = read_weights(load_from, trust)
    # Not an exported file, which takes as long to open as to run.
    if can_build and (trains or load_from):
        with findings.collecting(of_config=True):
            model = preflight_model.build_model(config)
    if model is not None and weights is not None:
        with findings.collecting():
            if remedy is None:
                fitting_weights(model.state_dict(), weights, load_from)
            else:
                check_weights(model, weights, load_from, remedy)
    if model is not None and trains:
        with findings.collecting():
            preflight_model.check_room_for(config, model)
