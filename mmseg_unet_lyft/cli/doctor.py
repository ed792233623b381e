"""Check the installation, the machine and the data, and advise on each fault; changes nothing.

mmseg-unet-lyft doctor, or python tools/doctor.py. Needs neither torch nor an mm stack.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..compat import installed_stack, installed_version, require_opencv, stack_faults, stack_title
from ..datasets.files import free_bytes
from ..errors import EXTRAS, InputError, install_command, printable
from ..processes import cores
from .console import CommandParser, guarded, say


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    what: str
    found: str  # Its version or state.
    advice: str = ''  # What to do about it, '' if nothing is wrong.
    stops: bool = False  # Whether commands work only after the advice is followed.


def as_text(findings: list[Finding]) -> str:
    """One line per finding, with the advice below it where something is wrong, then the verdict."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f'{"!" if finding.advice else " "} {finding.what:{width}}  {finding.found}'.rstrip())
        if finding.advice:
            lines.append(f'  {"":{width}}  -> {finding.advice}')
    faults = [finding.what for finding in findings if finding.advice]
    if stopping := [finding.what for finding in findings if finding.stops]:
        verdict = f'no command works before this is fixed: {", ".join(stopping)}'
    else:
        verdict = f'worth a look: {", ".join(faults)}; commands work' if faults else 'no faults'
    return '\n'.join(map(printable, [*lines, '', verdict]))


_DATA_PLACES = ('data/lyft', 'data/drawn')
_DATA_VARIABLE = 'LYFT_DATA_ROOT'
_THREAD_VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')
_SHARED_MEMORY = Path('/dev/shm')
_AMD_DEVICE = Path('/dev/kfd')
# 8 workers with two batches each of 4 crops of 384x512 at 4 bytes a pixel: 50 MB.
_LEAST_SHARED = 64e6
# Three checkpoints of the reference with AdamW's moments are 78 MB; logs and pictures come on top.
_LEAST_DISK = 1e9
# A step of 4 crops of 384x512 takes 1.3 GB; torch and the workers come on top.
_LEAST_MEMORY = 2e9
_ASK_SECONDS = 60
_ASK_TORCH = """
import sys
import torch
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        part = torch.cuda.get_device_properties(index)
        sys.stdout.write(f'cuda:{index} {part.name}, {part.total_memory / 1e9:.0f} GB\\n')
elif getattr(torch.backends, 'mps', None) and torch.backends.mps.is_available():
    sys.stdout.write('mps\\n')
"""


def machine_findings(folder: Path) -> Iterator[Finding]:
    """Findings on the machine, and on the data and the disk of a folder."""
    yield _devices()
    yield _cores()
    yield from _memory()
    yield from _disks(folder)
    yield from _data(folder)


def _devices() -> Finding:
    """GPUs that the driver lists; if there are any, a process with torch checks them, which takes seconds."""
    listed = _listed_gpus()
    if not listed and platform.system() != 'Darwin':
        return Finding('devices', f'CPU ({platform.machine()}); no GPU driver')
    if find_spec('torch') is None:
        return Finding('devices', f'{", ".join(listed) or "CPU"}; torch, to use it, is not installed')
    usable = _run([sys.executable, '-c', _ASK_TORCH])
    if usable or not listed:
        return Finding('devices', ', '.join(usable) or f'CPU ({platform.machine()})')
    found = f'{", ".join(listed)}, which torch {installed_version("torch")} does not use'
    is_cpu_build = installed_version('torch').endswith('+cpu')
    if os.environ.get('CUDA_VISIBLE_DEVICES') == '' and not is_cpu_build:
        return Finding('devices', found, 'CUDA_VISIBLE_DEVICES is empty and hides it; unset it')
    advice = 'install a torch built for its driver: https://pytorch.org/get-started/locally names the command'
    return Finding('devices', found, advice)


def _listed_gpus() -> list[str]:
    """Names of GPUs from the driver, without torch."""
    if shutil.which('nvidia-smi'):
        return _run(['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'])
    return ['an AMD GPU'] if _AMD_DEVICE.exists() else []


def _run(command: list[str]) -> list[str]:
    """Lines printed by a command; none if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _cores() -> Finding:
    """Cores, and whether more threads are set than cores, so that threads wait for each other."""
    usable = cores()
    allowed = min(usable, _quota() or usable)
    threads = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    said = ''.join(f', {name}={value}' for name, value in threads.items())
    found = f'{usable} usable, time of {allowed:g}{said}' if allowed < usable else f'{usable} usable{said}'
    too_many = [name for name, value in threads.items() if value.isdigit() and int(value) > max(allowed, 1)]
    if too_many:
        return Finding('cores', found, f'threads wait for each other; unset {" and ".join(too_many)}')
    if allowed < usable and not threads:
        advice = f'torch starts {usable} threads where time of {allowed:g} cores is allowed: '
        return Finding('cores', found, f'{advice}export OMP_NUM_THREADS={max(int(allowed), 1)}')
    return Finding('cores', found)


def _quota() -> float | None:
    """CPU time that a container is allowed, in cores; None without a limit."""
    file = Path('/sys/fs/cgroup/cpu.max')
    parts = file.read_text(encoding='ascii').split() if file.is_file() else []
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def _memory() -> Iterator[Finding]:
    """Free memory, and free shared memory, in which loader workers pass batches."""
    file = Path('/proc/meminfo')
    lines = file.read_text(encoding='ascii').splitlines() if file.is_file() else []
    for free in [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]:
        advice = 'training may run out of it; try batch_size=1 with_cp=True num_workers=0'
        yield Finding('memory', f'{_size(free)} free', advice if free < _LEAST_MEMORY else '')
    if _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        advice = 'loader workers hand batches over there: docker run --shm-size=1g, or num_workers=0'
        yield Finding(str(_SHARED_MEMORY), f'{_size(free)} free', advice if free < _LEAST_SHARED else '')


def _disks(folder: Path) -> Iterator[Finding]:
    """The disks for runs and temporary files."""
    for what, place in (('disk', folder), ('temporary files', Path(tempfile.gettempdir()))):
        free = free_bytes(place)
        advice = 'little for checkpoints and pictures; make room' if free < _LEAST_DISK else ''
        if not os.access(place, os.W_OK):
            advice = 'cannot be written; go to another folder, or name one with --work-dir and --out'
        yield Finding(what, f'{_size(free)} free at {place}', advice)


def _data(folder: Path) -> Iterator[Finding]:
    """Data where the environment variable says, or else in the usual folders."""
    if find_spec('numpy') is None:
        yield Finding('data', 'not checked without numpy')
        return
    from ..datasets.layout import KAGGLE_URL

    named = os.environ.get(_DATA_VARIABLE)
    if named:
        yield _data_at(folder / named, f'{_DATA_VARIABLE}={named}')
        return
    present = [place for place in _DATA_PLACES if (folder / place).is_dir()]
    yield from (_data_at(folder / place, place) for place in present)
    if not present:
        advice = f'draw some: python tools/draw_scenes.py data/drawn; or put {KAGGLE_URL} at data/lyft'
        yield Finding('data', f'none at {" or ".join(_DATA_PLACES)}, and {_DATA_VARIABLE} is not set', advice)


def _data_at(root: Path, source: str) -> Finding:
    """What a data root holds, from the names of its files alone."""
    from ..datasets.layout import MARKER_NAME, list_frames
    from ..datasets.packed import is_packed

    if is_packed(root):
        return Finding('data', f'{source}: packed frames')
    try:
        listing = list_frames(root)
    except InputError as error:
        return Finding('data', source, str(error))
    kind = 'synthetic scenes' if (root / MARKER_NAME).is_file() else 'frames'
    drives = len({frame.drive for frame in listing.frames})
    found = f'{source}: {len(listing.frames)} {kind} of {drives} drives'
    if listing.problems:
        first = listing.problems[0]
        found += f'; {len(listing.problems)} problems, the first: {first.path}: {first.message}'
        return Finding('data', found, f'see all of them: python tools/inspect_data.py {root}')
    return Finding('data', found)


def _size(number: float) -> str:
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.0f} MB'


_PACKAGE = 'mmseg_unet_lyft'
_FOLDER = Path(__file__).resolve().parents[1]
_RUNTIMES = ('onnxruntime', 'openvino')
_OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
# Libraries that the package always needs, then others that its modules import, without stack and torch.
_NEEDED = ('numpy', 'pillow', 'rich')
_LIBRARIES = (*_NEEDED, 'av', 'matplotlib', 'safetensors', 'jinja2')
_EVERYWHERE = 'libraries'


def software_findings() -> Iterator[Finding]:
    """Findings on Python, the package, the mm stack and the libraries."""
    yield Finding('Python', f'{platform.python_version()}, {sys.executable}')
    yield _package()
    yield Finding('torch', installed_version('torch') or 'not installed')
    yield from _stack()
    yield _opencv()
    yield from _libraries()


def _package() -> Finding:
    """Where the package is, and whether Git made its links to configs and tools."""
    linked = _FOLDER / '.mim' / 'configs'
    if not linked.is_dir():
        advice = 'git config core.symlinks true && git checkout -- mmseg_unet_lyft/.mim, or install it'
        return Finding(_PACKAGE, f'{__version__} in {_FOLDER}, without its configs', advice)
    return Finding(_PACKAGE, f'{__version__} in {_FOLDER}')


def _stack() -> Iterator[Finding]:
    """The mm stack with all its faults; commands on exported files do not need it."""
    found = installed_stack()
    named = ', '.join(f'{name} {version}' for name, version in found.items()) or 'not installed'
    title = stack_title(found)
    faults = list(stack_faults())
    runtimes = [name for name in _RUNTIMES if find_spec(name) is not None]
    if faults and not found and runtimes:
        advice = f'only exported files run ({", ".join(runtimes)}); to train and score: {install_command()}'
        yield Finding('mm stack', named, advice)
        return
    for fault in faults or ['']:
        advice = fault.replace('this command needs', 'commands need')
        yield Finding('mm stack', f'{title}: {named}' if title else named, advice, stops=bool(fault))


def _opencv() -> Finding:
    """OpenCV; imports it, since only that reveals a missing system library."""
    builds = {name: version for name in _OPENCV if (version := installed_version(name))}
    named = ', '.join(f'{name} {version}' for name, version in builds.items()) or 'not installed'
    try:
        require_opencv()
    except InputError as error:
        advice = str(error).replace('this command needs', 'commands need')
        return Finding('OpenCV', named, advice, stops=True)
    advice = f'they overwrite each other; keep one: pip uninstall -y {" ".join(builds)}, then install it'
    return Finding('OpenCV', named, advice if len(builds) > 1 else '')


def _libraries() -> Iterator[Finding]:
    """The libraries of the package, then the optional ones of its extras."""
    named = {**dict.fromkeys(_LIBRARIES, ''), **{name: f' [{extra}]' for name, extra in EXTRAS.items()}}
    there = {name: version for name in named if (version := installed_version(name))}
    for what, names in ((_EVERYWHERE, _LIBRARIES), ('optional', EXTRAS)):
        said = [f'{name} {there[name]}' if name in there else f'no {name}{named[name]}' for name in names]
        missing = [name for name in names if name not in there]
        needed = [name for name in missing if name in _NEEDED]
        advice = f'commands need them; install with: pip install {" ".join(needed)}' if needed else ''
        if not advice and missing and what == _EVERYWHERE:
            advice = f'some commands need them; install with: pip install {" ".join(missing)}'
        yield Finding(what, ', '.join(said), advice, stops=bool(needed))


EXIT_UNUSABLE = 1


def _doctor(argv: list[str] | None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument('--json', action='store_true', help='print JSON, to send along with a question')
    args = parser.parse_args(argv)
    findings = [*software_findings(), *machine_findings(Path.cwd())]
    usable = not any(finding.stops for finding in findings)
    as_json = dict(usable=usable, findings=[asdict(finding) for finding in findings])
    say(*(json.dumps(as_json, indent=1) if args.json else as_text(findings)).split('\n'))
    return 0 if usable else EXIT_UNUSABLE


main = guarded(_doctor)
