"""Mutated inputs, fed to the commands one by one: each gives the right result, or one clear error."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.rounds import Show
from .kind import Consumer, Kind, Other, Place
from .kinds import KINDS
from .oracle import FAILED, OTHER, REFUSED, RIGHT, Verdict, judge_end, judge_result
from .outcome import Outcome
from .sample import Sample, make_sample, one_thread
from .session import LIMIT_SECONDS, Ran, run_forked

# Of the cases of a kind that has a manifest, those in which files are exchanged or renamed.
_MOVED_SHARE = 0.15
_NEW_NUMBER = 77


@dataclass(frozen=True)
class Case:
    """One mutated file and what it is fed to.

    Attributes:
        kind: Of the file.
        number: Of the case; with the seed, it decides everything.
        consumer: What reads it.
        file: Path below the tree.
        mutation: Its name.
        content: The mutated bytes; None where files were moved instead.
        moved: Old path by new one, below the tree.
    """

    kind: Kind
    number: int
    consumer: Consumer
    file: str
    mutation: str
    content: bytes | None = None
    moved: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """For people."""
        return (
            f'case {self.number}, {self.kind.name}: {self.file} {self.mutation}, fed to {self.consumer.name}'
        )


def torture_inputs(folder: Path, count: int, seed: int, progress: Show) -> list[Outcome]:
    """Feed mutated files to the commands, each in a process of its own.

    Args:
        folder: Empty; failed cases stay in it.
        count: Cases, spread evenly over the kinds.
        seed: Another seed, other cases.
        progress: Wraps the cases, given them, how many there are, and what is done.

    Returns:
        One outcome a kind.
    """
    with one_thread():
        oracle = Oracle(make_sample(folder / 'sample'), folder)
        verdicts: dict[str, list[str]] = {kind.name: [] for kind in KINDS}
        failures: dict[str, list[str]] = {kind.name: [] for kind in KINDS}
        for number in progress(range(count), count, 'mutated inputs'):
            case = make_case(oracle.sample, KINDS[number % len(KINDS)], seed, number)
            verdict = oracle.try_case(case)
            verdicts[case.kind.name].append(verdict.kind)
            if verdict.kind == FAILED:
                failures[case.kind.name].append(f'{case}: {verdict.why}')
    return [_outcome(name, of_kind, failures[name]) for name, of_kind in verdicts.items()]


def _outcome(name: str, kinds: list[str], failures: list[str]) -> Outcome:
    counts = Counter(kinds)
    what = f'{name}: {len(kinds)}: {counts[RIGHT]} right, {counts[REFUSED]} refused'
    if counts[OTHER]:
        what += f', {counts[OTHER]} valid files of other content'
    return Outcome('inputs', what, len(kinds), len(kinds) - counts[FAILED], failures)


def make_case(sample: Sample, kind: Kind, seed: int, number: int) -> Case:
    """A case; seed and number decide all of it."""
    rng = np.random.Generator(np.random.PCG64([seed, number]))
    tree = sample.folder / kind.tree
    if kind.manifest is not None and rng.random() < _MOVED_SHARE:
        return _move(kind, tree, number, rng)
    consumer = kind.consumers[rng.integers(len(kind.consumers))]
    files = sorted({path for pattern in consumer.files for path in tree.glob(pattern)})
    file = files[rng.integers(len(files))]
    mutations = kind.mutations[file.suffix]
    before = file.read_bytes()
    while True:
        name = list(mutations)[rng.integers(len(mutations))]
        content = mutations[name](before, rng)
        # The same bytes would be no case.
        if content != before:
            return Case(kind, number, consumer, str(file.relative_to(tree)), name, content)


def _move(kind: Kind, tree: Path, number: int, rng: np.random.Generator) -> Case:
    """A case of two files exchanged, or of a frame under another name."""
    of_kind = [path for one in kind.consumers for pattern in one.files[:1] for path in tree.glob(pattern)]
    files = sorted({str(path.relative_to(tree)) for path in of_kind})
    one, other = (files[at] for at in rng.choice(len(files), 2, replace=False))
    if rng.random() < 0.5:
        return Case(kind, number, kind.manifest, one, 'swapped', moved=((one, other), (other, one)))
    frame = Path(one)
    new_name = f'{frame.stem.partition("-")[0]}-{_NEW_NUMBER}.png'
    places = [f'{frame.parent.parent}/{folder}' for folder in ('CameraRGB', 'CameraSeg')]
    moved = tuple((f'{place}/{frame.name}', f'{place}/{new_name}') for place in places)
    return Case(kind, number, kind.manifest, one, 'renamed', moved=moved)


class Oracle:
    """Runs cases and judges them.

    Args:
        sample: The untouched inputs.
        folder: For the cases.
        limit_seconds: A command that runs longer hangs.
    """

    def __init__(self, sample: Sample, folder: Path, limit_seconds: float = LIMIT_SECONDS) -> None:
        self.sample = sample
        self._folder = folder
        self._limit = limit_seconds
        self._expected: dict[tuple[str, str], Any] = {}

    def try_case(self, case: Case) -> Verdict:
        """Run a case and judge it; its folder stays if it failed."""
        folder = self._folder / f'case_{case.number}'
        place = self._lay_out(case, folder, case.content)
        ran = self._run(case, place)
        verdict = judge_end(ran, self._names(case, place), case.consumer.lists_files)
        if verdict is None:
            verdict = self._judge_accepted(case, place)
        elif verdict.kind == REFUSED and case.mutation in case.kind.harmless:
            verdict = Verdict(FAILED, f'refused, though it is as good as before: {verdict.why}')
        if verdict.kind != FAILED:
            shutil.rmtree(folder)
        return verdict

    def _names(self, case: Case, place: Place) -> list[str]:
        """What an error may call the mutated file."""
        if case.moved:
            return [name for pair in case.moved for name in pair]
        names = [str(place.file), *([case.file] if case.consumer.lists_files else [])]
        if case.kind.whole and isinstance(self._meaning(case), Other):
            names.append(str(place.tree / case.kind.whole))
        return names

    def _meaning(self, case: Case) -> bool | Other | None:
        before = (self.sample.folder / case.kind.tree / case.file).read_bytes()
        return case.kind.meaning(case.content, before, Path(case.file).suffix)

    def _judge_accepted(self, case: Case, place: Place) -> Verdict:
        if case.moved:
            return Verdict(FAILED, 'accepted silently, though the manifest says otherwise')
        expected = self._expect(case)
        means = self._meaning(case)
        found, clean = case.consumer.result(place), None
        if isinstance(means, Other) and means.clean is not None and found != expected:
            clean = self._result(case, means.clean, 'clean')
        return judge_result(found, expected, means, clean, case.consumer.proves)

    def _expect(self, case: Case) -> Any:
        """The result of the untouched files."""
        key = case.consumer.name, case.file if case.kind.name == 'videos' else case.kind.name
        if key not in self._expected:
            self._expected[key] = self._result(case, None, 'untouched')
        return self._expected[key]

    def _result(self, case: Case, content: bytes | None, what: str) -> Any:
        """What a consumer makes of other bytes in the place of a case's file; None for the untouched."""
        folder = self._folder / f'case_{case.number}_{what}'
        place = self._lay_out(case, folder, content)
        ran = self._run(case, place)
        if ran.code:
            raise RuntimeError(f'{case}: {what} file: exit code {ran.code}: {ran.text}')
        found = case.consumer.result(place)
        shutil.rmtree(folder)
        return found

    def _lay_out(self, case: Case, folder: Path, content: bytes | None) -> Place:
        """The tree of a case, all but the mutated file shared with the sample's."""
        tree = folder / 'tree'
        shutil.copytree(self.sample.folder / case.kind.tree, tree, copy_function=os.link)
        (folder / 'out').mkdir()
        if content is not None:
            (tree / case.file).unlink()
            (tree / case.file).write_bytes(content)
        elif case.moved and folder.name == f'case_{case.number}':
            contents = {new: (tree / old).read_bytes() for old, new in case.moved}
            for old, _ in case.moved:
                (tree / old).unlink()
            for new, moved in contents.items():
                (tree / new).write_bytes(moved)
        return Place(self.sample, tree, tree / case.file, folder / 'out')

    def _run(self, case: Case, place: Place) -> Ran:
        return run_forked(lambda: case.consumer.feed(place), place.out.parent / 'log.txt', self._limit)
