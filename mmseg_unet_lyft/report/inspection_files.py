"""An inspection with its files: JSON, page, manifest; and its summary for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..datasets import manifest
from ..datasets.files import read_object, write_json, write_whole
from ..datasets.inspection import KINDS, Inspection, inspect
from ..datasets.leak import Leak, measure_leaks
from ..errors import InputError, printable
from .inspection_page import build_page, problem_counts, to_json_report

REPORT_NAME, PAGE_NAME, MANIFEST_NAME = 'inspection.json', 'report.html', 'manifest.json'
_EXAMPLES = 3


def inspect_and_report(
    root: Path,
    out: Path,
    simulator: str = '0.8',
    accept: Sequence[str] = (),
    split_file: Path | None = None,
    manifest_path: Path | None = None,
    new_manifest: bool = False,
    workers: int | None = None,
    show: Callable[[Iterable, int], Iterable] = lambda frames, total: frames,
) -> tuple[Inspection, list[Leak]]:
    """Inspect a root and write what was found into a folder.

    An earlier manifest is compared with and stays as it is; else one is written.

    Raises:
        InputError: If the root or an option is not usable, or the folder cannot be written.
    """
    manifest_path = manifest_path or out / MANIFEST_NAME
    compared = manifest_path.is_file() and not new_manifest
    inspection = inspect(
        root,
        simulator,
        accept,
        split=None if split_file is None else read_split(split_file),
        baseline=manifest.read(manifest_path) if compared else None,
        workers=workers,
        show=show,
    )
    leaks = measure_leaks(inspection.of_one_size, simulator)
    if not compared:
        manifest.write(manifest_path, inspection.files)
    write_reports(out, inspection, leaks)
    return inspection, leaks


def write_reports(out: Path, inspection: Inspection, leaks: Sequence[Leak]) -> None:
    """Write JSON and page; the same data give the same bytes."""
    write_json(out / REPORT_NAME, to_json_report(inspection, leaks))
    # A name that is not UTF-8 arrives as surrogates.
    write_whole(out / PAGE_NAME, build_page(inspection, leaks).encode('utf-8', 'backslashreplace'))


def read_split(path: Path) -> dict[str, list[str]]:
    """Frame or drive names by part, from JSON.

    Raises:
        InputError: If the file cannot be read or is something else.
    """
    wanted = 'expected {"train": ["F1", "F2-17"], "test": [...]}'
    split = read_object(path, wanted)
    if not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in split.values()
    ):
        raise InputError(f'{path}: {wanted}')
    return split


def summary(inspection: Inspection, leaks: Sequence[Leak]) -> str:
    """The problems by kind with examples, and the leaks, as lines."""
    lines = [f'{len(inspection.judged)} frames, {len(inspection.sound)} sound']
    for kind, count in problem_counts(inspection).items():
        lines.append(f'{count:6}  {KINDS[kind]} ({kind})')
        of_kind = [problem for problem in inspection.problems if problem.kind == kind]
        lines += [f'        {printable(f"{one.path}: {one.message}")}' for one in of_kind[:_EXAMPLES]]
    if inspection.accepted:
        lines.append(f'{len(inspection.accepted):6}  accepted')
    for leak in leaks:
        lines.append(
            f'copying the nearest training label, {leak.split}, {leak.part} ({len(leak.frames)} frames): '
            f'mIoU {leak.miou:.1f}, {leak.agreement:.1f} % of pixels'
        )
    return '\n'.join(lines)
