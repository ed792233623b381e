"""Inference with a trained model, and the suffixes of model files.

The suffixes are defined here because commands need them before anything else is imported.
"""

WEIGHTS = '.safetensors'
WEIGHTS_NAME = 'model.safetensors'  # In a folder of the Hub's form.
PICKLED = ('.pth', '.pt')
CHECKPOINTS = (*PICKLED, WEIGHTS)
PROGRAM = '.pt2'  # Run by PyTorch; reading one can run code that it brings.
# By `tools/export.py --format`, except weights alone.
EXPORT_SUFFIXES = dict(onnx='.onnx', openvino='.xml', torch=PROGRAM)
EXPORTED = tuple(EXPORT_SUFFIXES.values())
MODELS = (*CHECKPOINTS, *EXPORTED)
