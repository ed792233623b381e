"""Kinds of model files by their suffix; no heavy imports, since commands ask before they import."""

from ..engine.weights_format import SUFFIX

CHECKPOINTS = ('.pth', '.pt', SUFFIX)
EXPORTED = ('.onnx', '.xml')
MODELS = (*CHECKPOINTS, *EXPORTED)
