"""What a figure was measured on: machine, threads, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import cv2
import torch

_PACKAGES = (
    'torch',
    'numpy',
    'opencv-python',
    'pillow',
    'av',
    'onnxruntime',
    'openvino',
    'onedl-mmsegmentation',
    'onedl-mmcv',
    'onedl-mmengine',
    'mmsegmentation',
    'mmcv',
    'mmcv-lite',
    'mmengine',
)


def describe_machine() -> dict:
    """Processor, cores, load, GPU, thread counts and versions, for JSON."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text(encoding='utf-8').splitlines() if cpu_info.is_file() else []
    models = {line.partition(':')[2].strip() for line in lines if line.startswith('model name')}
    return dict(
        processor=', '.join(sorted(models)) or platform.processor(),
        cores=os.cpu_count(),
        load_average=os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
        python=platform.python_version(),
        threads=dict(torch=torch.get_num_threads(), opencv=cv2.getNumThreads()),
        versions=versions,
    )
