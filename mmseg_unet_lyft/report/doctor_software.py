"""Software that the doctor looks at: Python, the package, the mm stack, libraries; versions by metadata."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from .. import __version__
from ..compat import (
    install_command,
    installed_stack,
    installed_version,
    require_opencv,
    stack_faults,
    stack_name,
)
from ..errors import InputError
from .doctor import Finding
from .doctor_machine import has_gpu_driver
from .tested import nearest

_PACKAGE = 'mmseg_unet_lyft'
_FOLDER = Path(__file__).resolve().parents[1]
_LEAST_PYTHON = (3, 10)
_RUNTIMES = ('onnxruntime', 'openvino')
_OPENCV = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
# What the package needs however it is installed, then what its parts import beside the stack and torch.
_NEEDED = ('numpy', 'pillow', 'rich')
_LIBRARIES = (*_NEEDED, 'av', 'matplotlib', 'safetensors', 'jinja2')
_EVERYWHERE = 'libraries'
# By the extra that brings them.
_OPTIONAL = dict(onnxruntime='deploy', openvino='openvino', onnx='export', onnxscript='export', h5py='keras')
_OPTIONAL |= dict(gradio='demo', argcomplete='completion')
_OPTIONAL |= dict.fromkeys(('tensorboard', 'wandb', 'mlflow'), 'trackers')
_STACK_TITLES = dict(onedl='OneDL', openmmlab='OpenMMLab')


def software_findings() -> Iterator[Finding]:
    """Of Python, the package, the stack and what stands beside it."""
    yield _python()
    yield _package()
    yield _torch()
    yield from _stack()
    yield _tested()
    yield _opencv()
    yield from _libraries()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _LEAST_PYTHON:
        return Finding('Python', version, 'use Python 3.10 or newer: make install PYTHON=python3.11', True)
    return Finding('Python', f'{version}, {sys.executable}')


def _package() -> Finding:
    """Where the package is; its links to configs and tools are files of text where Git made no links."""
    linked = _FOLDER / '.mim' / 'configs'
    if not linked.is_dir():
        advice = 'git config core.symlinks true && git checkout -- mmseg_unet_lyft/.mim, or install it'
        return Finding(_PACKAGE, f'{__version__} in {_FOLDER}, without its configs', advice)
    return Finding(_PACKAGE, f'{__version__} in {_FOLDER}')


def _torch() -> Finding:
    """What kind of torch; that it is missing is told with the stack."""
    version = installed_version('torch')
    return Finding('torch', version or 'not installed')


def _stack() -> Iterator[Finding]:
    """The mm stack, every fault of it; commands on exported files do without."""
    found = installed_stack()
    named = ', '.join(f'{name} {version}' for name, version in found.items()) or 'not installed'
    title = _STACK_TITLES.get(stack_name(found), '')
    faults = stack_faults()
    runtimes = [name for name in _RUNTIMES if find_spec(name) is not None]
    if faults and not found and runtimes:
        advice = f'only exported files run ({", ".join(runtimes)}); to train and score: {install_command()}'
        yield Finding('mm stack', named, advice)
        return
    for fault in faults or ['']:
        advice = fault.replace('this command needs', 'commands need')
        yield Finding('mm stack', f'{title}: {named}' if title else named, advice, stops=bool(fault))


def _tested() -> Finding:
    """Whether tests were run on something like this."""
    torch, stack = installed_version('torch'), stack_name(installed_stack())
    if not torch or not stack:
        return Finding('tested', 'nothing to compare without torch and an mm stack')
    python = '.'.join(platform.python_version_tuple()[:2])
    torch = '.'.join(torch.split('.')[:2])
    row, differences = nearest(python, torch, stack, platform.system(), platform.machine())
    # All rows are of the CPU.
    differences += ['a GPU'] if has_gpu_driver() else []
    if not differences:
        return Finding('tested', f'as here: {row.what} ({row.where})')
    advice = f'tests were not run with {", ".join(differences)}; to see whether they pass: make test'
    return Finding('tested', f'nearest: {row.where}', advice)


def _opencv() -> Finding:
    """OpenCV is imported, since its system library shows only then."""
    builds = {name: version for name in _OPENCV if (version := installed_version(name))}
    named = ', '.join(f'{name} {version}' for name, version in builds.items()) or 'not installed'
    try:
        require_opencv()
    except InputError as error:
        advice = str(error).replace('this command needs', 'commands need')
        return Finding('OpenCV', named, advice, stops=True)
    if len(builds) > 1:
        advice = f'they lie over each other; keep one: pip uninstall -y {" ".join(builds)}, then install it'
        return Finding('OpenCV', named, advice)
    return Finding('OpenCV', named, _out_of_range(dict.fromkeys(builds, 'opencv-python')))


def _libraries() -> Iterator[Finding]:
    """What is imported everywhere in one line, what extras bring in another."""
    versions = {name: installed_version(name) for name in (*_LIBRARIES, *_OPTIONAL)}
    there = {name: version for name, version in versions.items() if version}
    for what, names in ((_EVERYWHERE, _LIBRARIES), ('optional', _OPTIONAL)):
        said = [f'{name} {there[name]}' if name in there else f'no {_told(name)}' for name in names]
        missing = [name for name in names if name not in there]
        needed = [name for name in missing if name in _NEEDED]
        advice = f'commands need them; install with: pip install {" ".join(needed)}' if needed else ''
        advice = advice or _out_of_range({name: name for name in names if name in there})
        if not advice and missing and what == _EVERYWHERE:
            advice = f'some commands need them; install with: pip install {" ".join(missing)}'
        yield Finding(what, ', '.join(said), advice, stops=bool(needed))


def _told(name: str) -> str:
    return f'{name} [{_OPTIONAL[name]}]' if name in _OPTIONAL else name


def _out_of_range(names: dict[str, str]) -> str:
    """The advice on distributions that are not of the versions that the package asks for; '' if all are.

    Args:
        names: Under which name the package asks for each.
    """
    try:
        required = metadata.requires(_PACKAGE) or []
        from packaging.requirements import Requirement
    # A clone that is not installed says no versions, and packaging comes with an extra.
    except (metadata.PackageNotFoundError, ImportError):
        return ''
    ranges = {one.name: one.specifier for one in map(Requirement, required)}
    wrong = [
        f"'{name}{ranges[asked]}'"
        for name, asked in names.items()
        if asked in ranges and not ranges[asked].contains(installed_version(name), prereleases=True)
    ]
    return (
        f'outside of what the package asks for; mend it with: pip install {" ".join(wrong)}' if wrong else ''
    )
