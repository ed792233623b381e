"""Kinds of model files by their suffix; the standard library only, since commands ask before they import."""

CHECKPOINTS = ('.pth', '.pt')
EXPORTED = ('.onnx', '.xml')
MODELS = (*CHECKPOINTS, *EXPORTED)
