"""Kinds of model files by their suffix; no heavy imports, since commands ask before they import."""

from ..engine.weights_format import SUFFIX

PICKLED = ('.pth', '.pt')
CHECKPOINTS = (*PICKLED, SUFFIX)
PROGRAM, TORCHSCRIPT = '.pt2', '.torchscript'
# What PyTorch runs: reading one can run code that it brings.
PROGRAMS = (PROGRAM, TORCHSCRIPT)
EXPORTED = ('.onnx', '.xml', *PROGRAMS)
# Of `tools/export.py --format`, weights alone aside.
EXPORT_SUFFIXES = dict(onnx='.onnx', openvino='.xml', torch=PROGRAM, torchscript=TORCHSCRIPT)
MODELS = (*CHECKPOINTS, *EXPORTED)
