"""Export a trained model to a file that maps uint8 frames to label maps, and compare it with PyTorch."""

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.fx.experimental._config as symbolic
from mmseg.models.segmentors import BaseSegmentor
from mmseg.models.utils import resize
from prettytable import PrettyTable
from torch import Tensor, nn

from .. import __version__
from ..datasets.carla import get_scheme, hood_spans, tags_to_ids
from ..datasets.files import checksum_file, sync
from ..datasets.image_io import read_image, read_label
from ..datasets.layout import find_pairs
from ..errors import InputError
from ..evaluation.challenge import challenge_ids
from ..evaluation.metrics import confusion_matrix, mean_iou
from ..models.predict_modes import to_labels, to_probabilities
from ..models.preprocessor import normalise
from ..models.segmentor import beyond_plain
from ..synthetic.scenes import draw_frame
from . import EXPORT_SUFFIXES, WEIGHTS_NAME, runtimes
from .latency import Show, measure_start, synthetic_frames
from .runtimes import FRAMES, LABEL_MAP, MASKS, METADATA_KEY, PROBABILITIES, first_line
from .segmenter import Segmenter
from .torch_model import TorchNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

# An image, BGR, uint8 (H, W, 3), and its ids, uint8 (H, W), if they are known.
Frame = tuple[np.ndarray, np.ndarray | None]

# --- frames to compare on and to calibrate with ---

# (drive, frame, height, width); sizes that nobody trains at.
_SYNTHETIC = (('F1', 0, 618, 830), ('F3', 40, 487, 649), ('02_00', 10, 333, 411), ('F62', 5, 97, 131))
_CALIBRATION_FRAMES = 32


def frames_of_all_sizes(scheme: str | None) -> Iterator[Frame]:
    """Synthetic frames of several sizes, with their ids under a scheme."""
    for drive, frame, height, width in _SYNTHETIC:
        image, tags = draw_frame(drive, frame, height=height, width=width)
        # Synthetic tags are those of CARLA 0.8, whatever release the classes are read from.
        label = None if scheme is None else tags_to_ids(tags, get_scheme(scheme.partition('_from_')[0]))
        yield np.ascontiguousarray(image[..., ::-1]), label


def real_frames(
    data_root: Path, split: str | Sequence[str], number: int, scheme: str | None = None
) -> Iterator[Frame]:
    """At most ``number`` frames, evenly spread over a split as in `find_pairs`, read one by one.

    With ``scheme`` frames come with their ids.
    """
    pairs = find_pairs(data_root, split)
    for index in np.linspace(0, len(pairs) - 1, min(number, len(pairs))).astype(int):
        image, label_path = read_image(pairs[index]['img_path']), pairs[index]['seg_map_path']
        yield image, None if scheme is None else read_label(label_path, scheme, str(data_root))


# --- the network as it is exported ---


def resize_as_opencv(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames uint8 (N, H, W, 3) as ``cv2.resize`` scales them to a (height, width): float32 (N, h, w, 3).

    OpenCV rounds weights and sums to few bits. Rounded otherwise, a tenth of the levels differed and 0.2 % of
    a random network's labels.

    Source: opencv, modules/imgproc/src/resize.cpp, HResizeLinear and VResizeLinear for uchar
    """
    (top, bottom), down = _neighbours(frames.shape[1], size[0])
    (left, right), across = _neighbours(frames.shape[2], size[1])
    across, down = across[:, None], down[:, None, None]
    lines = frames.index_select(2, left) * (2048 - across) + frames.index_select(2, right) * across
    lines = (lines / 16).floor()
    upper = (lines.index_select(1, top) * ((2048 - down) / 65536)).floor()
    lower = (lines.index_select(1, bottom) * (down / 65536)).floor()
    return ((upper + lower + 2) / 4).floor()


def _neighbours(length: int, wanted: int) -> tuple[list[Tensor], Tensor]:
    """For each place of a scaled side: indices of its two neighbours, and the second's weight of 2048."""
    places = ((2 * torch.arange(wanted) + 1) * length - wanted).float() / (2 * wanted)
    first = places.floor()
    neighbours = [(first.long() + step).clamp(min=0).clamp(max=length - 1) for step in (0, 1)]
    return neighbours, ((places - first) * 2048).round()


class FrameNetwork(nn.Module):
    """A network with its resize, normalisation and thresholds: bytes of frames in, class ids out.

    If the classes have vehicles and road, the challenge's masks are an output, too, the ego hood included:
    from each pixel's class, or with ``mask_thresholds`` where summed probabilities ``p >= t``. With
    ``for_torch`` it computes in NHWC memory format. ``outputs`` are the names of what it gives.

    Raises:
        InputError: If thresholds of masks are given and the classes have no road or no vehicle, or the
            network is applied with views, windows, padding, dropout or steps other than a plain Resize.
    """

    def __init__(
        self,
        network: TorchNetwork,
        mask_thresholds: tuple[float, float] | None = None,
        probabilities: bool = False,
        for_torch: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.thresholds, self.resizes = network.model, network.thresholds, network.resizes
        self.mask_thresholds, self.for_torch = mask_thresholds, for_torch
        asked = [f'test_cfg.{key}' for key in beyond_plain(self.model.test_cfg)]
        if getattr(self.model.data_preprocessor, 'test_cfg', None):
            asked.append('data_preprocessor.test_cfg')
        if self.resizes is None:
            asked.append(f'test_pipeline {network.steps}')
        if asked:
            raise InputError(
                f'{", ".join(asked)}: an exported file is the network and its bilinear Resize to a scale, on '
                'complete frames; leave the rest out of the config, or use the checkpoint'
            )
        with torch.no_grad():
            probe = self.model.decode_head(self.model.extract_feat(torch.zeros(1, 3, 64, 64)))
        self.is_full_size = tuple(probe.shape[2:]) == (64, 64)
        try:
            self.mask_ids = challenge_ids(network.classes)
        except InputError:
            if mask_thresholds is not None:
                raise
            self.mask_ids = None
        given = {LABEL_MAP: True, MASKS: self.mask_ids is not None, PROBABILITIES: probabilities}
        self.outputs = [name for name, is_given in given.items() if is_given]

    def forward(self, frames: Tensor, canvas: Tensor | None = None) -> tuple[Tensor, ...]:
        """The ``outputs``, as `ExportedNetwork.run` gives them, of BGR frames uint8 (N, H, W, 3).

        Where the ratio of a frame's sides is kept, ``canvas`` (h, w) has the size to resize to.
        """
        resized = frames
        for scale, _ in self.resizes:
            resized = resize_as_opencv(frames, scale[::-1] if canvas is None else canvas.shape)
        images = normalise(self.model.data_preprocessor, resized.permute(0, 3, 1, 2).float())
        if self.for_torch:
            images = images.to(memory_format=torch.channels_last)
        logits = self.model.decode_head(self.model.extract_feat(images))
        # Only networks whose finest map is smaller than the image need the first.
        sizes = ((not self.is_full_size, images.shape[2:]), (bool(self.resizes), frames.shape[1:3]))
        for size in (size for is_needed, size in sizes if is_needed):
            logits = resize(logits, size=size, mode='bilinear', align_corners=self.model.align_corners)
        shares = to_probabilities(logits)
        found = {PROBABILITIES: shares}
        found[LABEL_MAP] = label_map = to_labels(logits, self.model.decode_head.threshold, self.thresholds)
        if self.mask_ids is not None:
            if self.mask_thresholds is None:
                masks = [torch.stack([label_map == one for one in ids]).any(0) for ids in self.mask_ids]
            else:
                pairs = zip(self.mask_ids, self.mask_thresholds, strict=True)
                masks = [shares[:, list(ids)].sum(1) >= threshold for ids, threshold in pairs]
            found[MASKS] = torch.stack(masks, dim=1).to(torch.uint8)
        return tuple(found[name] for name in self.outputs)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence torch's warnings about missing packages and about sizes compared in a trace."""
    with runtimes.quiet('torch.onnx._internal.exporter._registration'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def to_program(frame_network: FrameNetwork) -> torch.export.ExportedProgram:
    """The network as torch.export's program; an InputError if number and size of frames cannot stay free."""
    if not hasattr(symbolic, 'backed_size_oblivious'):
        raise InputError(f'torch {torch.__version__}: exporting needs torch 2.8; pip install "torch>=2.8"')
    # A resize may make frames larger.
    side = 1 if frame_network.resizes else smallest_side(frame_network.model)
    # In plain memory format: a trace would fix sizes that the format is chosen by.
    module = copy.deepcopy(frame_network).eval()
    if hasattr(module.model, 'memory_format'):
        module.model.memory_format = torch.contiguous_format
    module.model.to(memory_format=torch.contiguous_format)
    # Odd, and no side of 1, which torch takes for fixed.
    inputs = [torch.zeros(2, 77, 101, 3, dtype=torch.uint8)]
    sides = (('N', 1), ('H', side), ('W', side))
    shapes: list = [{at: torch.export.Dim(name, min=least) for at, (name, least) in enumerate(sides)}]
    if any(keeps_ratio for _, keeps_ratio in frame_network.resizes):
        inputs.append(torch.zeros(65, 87))
        least = smallest_side(frame_network.model)
        shapes.append({at: torch.export.Dim(name, min=least) for at, name in enumerate('hw')})
    # With these two options, comparisons of sizes (is this map as large as the skip map?) become checks at
    # run time, and the smallest frame, whose deepest map is one pixel, needs no case of its own.
    with _quietly(), torch.no_grad(), symbolic.patch(backed_size_oblivious=True):
        try:
            return torch.export.export(
                module,
                tuple(inputs),
                dynamic_shapes=tuple(shapes),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f'this network does not take frames of every size ({first_line(error)}), so it cannot be '
                'exported; use its checkpoint'
            ) from error


def smallest_side(model: BaseSegmentor) -> int:
    """The smallest side of images that a network is exported for."""
    return getattr(model.backbone, 'smallest_side', 16)


# `runtimes.size_within` in ONNX, for the longer and the shorter side of a scale. Computed in torch.export's
# symbols, every size in the network would be a formula of several lines.
_RATIO_KEPT = """canvas (uint8[N, H, W, 3] frames) => (float[h, w] canvas)
<int64[2] canvas_scale = {{{}, {}}}, int64[2] canvas_column = {{2, 1}}, int64[1] canvas_axis = {{1}}> {{
    canvas_of = Shape <start = 1, end = 3> (frames)
    canvas_long = ReduceMax <keepdims = 1> (canvas_of)
    canvas_short = ReduceMin <keepdims = 1> (canvas_of)
    canvas_sides = Concat <axis = 0> (canvas_long, canvas_short)
    canvas_twice = Add (canvas_sides, canvas_sides)
    canvas_each = Reshape (canvas_of, canvas_column)
    canvas_product = Mul (canvas_each, canvas_scale)
    canvas_doubled = Add (canvas_product, canvas_product)
    canvas_rounded = Add (canvas_doubled, canvas_sides)
    canvas_kept = Div (canvas_rounded, canvas_twice)
    canvas_size = ReduceMin <keepdims = 0> (canvas_kept, canvas_axis)
    canvas = ConstantOfShape (canvas_size)
}}"""


def export_onnx(network: TorchNetwork, path: str | Path, **options) -> Path:
    """Write a network, on the CPU, as an ``.onnx`` file for `Segmenter`; options are `FrameNetwork`'s."""
    # torch.onnx writes with onnxscript.
    runtimes.require(path, 'onnx', 'onnxscript')
    import onnx
    import onnx.parser

    frame_network = FrameNetwork(network, **options)
    program = to_program(frame_network)
    with _quietly(), torch.no_grad():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[FRAMES, 'canvas'][: len(program.graph_signature.user_inputs)],
            output_names=frame_network.outputs,
            opset_version=18,
            external_data=False,
            verbose=False,
        )
    model = written.model_proto
    # Nodes carry the source lines they come from, and so the paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    if len(model.graph.input) > 1:
        # The file computes itself what the program takes as its second input.
        ((scale, _),) = network.resizes
        canvas = onnx.parser.parse_graph(_RATIO_KEPT.format(max(scale), min(scale)))
        model.graph.initializer.extend(canvas.initializer)
        del model.graph.input[1:]
        nodes = [*canvas.node, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata_of(network, frame_network.outputs)})
    onnx.save(model, str(path))
    return Path(path)


def convert_to_openvino(onnx_path: str | Path, path: str | Path) -> Path:
    """Write an ``.onnx`` file as OpenVINO's ``.xml`` and ``.bin``, its metadata with it."""
    runtimes.require(path, 'onnx', 'openvino')
    import onnx
    import openvino

    model = openvino.convert_model(str(onnx_path))
    metadata = _metadata_in(onnx.load(str(onnx_path)))
    model.set_rt_info(metadata, [METADATA_KEY])
    # Converting widens float16 weights.
    openvino.save_model(model, str(path), compress_to_fp16=json.loads(metadata)['precision'] == 'float16')
    return Path(path)


def export_program(network: TorchNetwork, path: str | Path, **options) -> Path:
    """Write a network as torch.export's ``.pt2`` program; options and errors as in `export_onnx`."""
    frame_network = FrameNetwork(network, for_torch=True, **options)
    program = to_program(frame_network)
    for node in program.graph.nodes:
        # The source lines it comes from, and so the paths of this machine.
        node.meta.pop('stack_trace', None)
    with _quietly():
        torch.export.save(
            program, str(path), extra_files={METADATA_KEY: metadata_of(network, frame_network.outputs)}
        )
    return Path(path)


def metadata_of(network: TorchNetwork, outputs: Sequence[str]) -> str:
    """What a reader of an exported file must know, as JSON."""
    hood = network.hood
    fields = dict(
        format=runtimes.FORMAT,
        version=__version__,
        precision='float32',
        outputs=list(outputs),
        resizes=network.resizes,
        smallest_side=smallest_side(network.model),
        classes=network.classes,
        palette=network.palette,
        scheme=network.scheme,
        data_sha256=network.data_sha256,
        colours='BGR',
        hood=None if hood is None else dict(spans=hood_spans(hood), size=list(hood.shape)),
    )
    return json.dumps(fields)


def _metadata_in(model: 'ModelProto') -> str:
    return next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY)


# --- smaller files ---

_CONVOLUTIONS = ('Conv', 'ConvTranspose')
# Norms that were not folded, and rare operators, stay in float32.
_QUANTISED = 'Conv ConvTranspose Relu LeakyRelu Clip MaxPool AveragePool Resize Add Concat Slice Pad'.split()


def half_onnx(path: str | Path, out: str | Path) -> None:
    """Write a float32 export with float16 weights: half as large. Loading it widens them again."""
    model, metadata = _load(path)
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    names = {node.input[1] for node in graph.node if node.op_type in _CONVOLUTIONS}
    for weight in graph.initializer:
        if weight.name in names and weight.data_type == TensorProto.FLOAT:
            name, half = weight.name, f'{weight.name}.half'
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), half))
            graph.node.insert(0, helper.make_node('Cast', [half], [name], half, to=TensorProto.FLOAT))
    _save(model, out, metadata, 'float16')


def quantise_onnx(path: str | Path, out: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Write a float32 ``.onnx`` file with its network in int8, calibrated on frames: a quarter as large.

    Weights are int8, one scale a channel, activations uint8. The first convolution, whose input are
    normalised pixels, and the last, which gives the logits, stay in float32: in int8 these two alone change
    nearly half of the labels that differ, and save no time.

    Args:
        path: From `export_onnx`.
        out: The file; may be ``path``.
        frames: As the network will see them, BGR, uint8 (H, W, 3), at least one; read one by one.
    """
    model, metadata = _load(path)
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Nodes are stored in the order they compute in.
    names = [node.name for node in model.graph.node]
    convolutions = [node.name for node in model.graph.node if node.op_type in _CONVOLUTIONS]
    between = names[names.index(convolutions[0]) + 1 : names.index(convolutions[-1])]
    batches = ({FRAMES: np.ascontiguousarray(frame[None])} for frame in frames)
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantised = f'{folder}/prepared.onnx', f'{folder}/int8.onnx'
        # Infer shapes only: norms are folded already, and its optimisations depend on the runtime's version.
        quant_pre_process(str(path), prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            nodes_to_quantize=between,
            per_channel=True,
            # What CPUs multiply fastest; signed activations took a third longer.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Cut at their 99.99th percentile, activations gave no better labels and took longer.
            calibrate_method=CalibrationMethod.MinMax,
        )
        _save(onnx.load(quantised), out, metadata, 'int8')


def _load(path: str | Path) -> tuple['ModelProto', dict]:
    runtimes.require(path, 'onnx', 'onnxruntime')
    import onnx

    model = onnx.load(str(path))
    return model, json.loads(_metadata_in(model))


def _save(model: 'ModelProto', path: str | Path, metadata: dict, precision: str) -> None:
    import onnx

    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata | dict(precision=precision))})
    onnx.save(model, str(path))


# --- the comparison of a file with its network ---

# Share of pixels that an exported file in float32 must label as the network does; less with a resize, since
# OpenCV rounds levels differently on other processors.
BAR, RESIZED_BAR = 0.9999, 0.999
_CLOSE = 0.01  # Probabilities that differ by less are the same.


@dataclass
class Parity:
    """How a file compares with its network."""

    same_pixels: int = 0  # In label maps and masks.
    pixels: int = 0
    confusions: list[np.ndarray] = field(default_factory=list)  # Network's, file's: int64 (C, C), rows truth.

    @property
    def agreement(self) -> float:
        """Share of pixels that are equal."""
        return self.same_pixels / self.pixels

    @property
    def miou(self) -> list[float] | None:
        """Percent, of network and file; None without truth."""
        if not self.confusions or not self.confusions[0].sum():
            return None
        return [100 * mean_iou(confusion) for confusion in self.confusions]

    def lines(self, what: str) -> Iterator[str]:
        """A report in lines."""
        yield f'{what}: {100 * self.agreement:.4f} % of {self.pixels / 1e6:.2f} million pixels labelled alike'
        if self.miou is not None:
            before, now = self.miou
            yield f'{what}: mIoU {before:.2f} in PyTorch, {now:.2f} in the file ({now - before:+.2f})'


def compare(reference: Segmenter, exported: Segmenter, frames: Iterable[Frame]) -> Parity:
    """Compare a file with the network in PyTorch, on frames alone and in a batch.

    Both are called as users call them, so that resize, normalisation, thresholds and masks are compared too.
    """
    parity, first, classes = Parity(), None, len(reference.classes)
    has_masks = MASKS in exported.network.outputs

    def count(batch: np.ndarray) -> list[np.ndarray]:
        """Count what agrees on frames (N, H, W, 3); returns both label maps, uint8 (N, H, W)."""
        both = [
            one.labels_and_masks(batch, colours='BGR') if has_masks else (one(batch, colours='BGR'),)
            for one in (reference, exported)
        ]
        pairs = [expected == found for expected, found in zip(*both, strict=True)]
        if exported.network.gives_probabilities:
            shares = [one.probabilities(batch, colours='BGR') for one in (reference, exported)]
            pairs.append(abs(shares[0] - shares[1]).max(1) < _CLOSE)
        parity.same_pixels += sum(int(same.sum()) for same in pairs)
        parity.pixels += sum(same.size for same in pairs)
        return [labels for labels, *_ in both]

    for frame, label in frames:
        first = frame if first is None else first
        both = count(frame[None])
        if label is not None:
            pair = [confusion_matrix(label, labels[0], classes) for labels in both]
            parity.confusions = [sum(two) for two in zip(parity.confusions or [0, 0], pair, strict=True)]
    count(np.ascontiguousarray(np.stack([first, first[:, ::-1]])[:, :77, :101]))
    return parity


# --- the complete export ---


@dataclass(frozen=True)
class Export:
    """What to write, and what to compare it on: synthetic frames, and real ones if a data root is given."""

    kind: str  # A key of `EXPORT_SUFFIXES`.
    path: Path  # OpenVINO's ``.bin`` goes next to it.
    precision: str = 'float32'  # Or ``'float16'`` or ``'int8'``.
    max_loss: float = 1.0  # What float16 and int8 may cost: points of mIoU; without truth, percent of pixels.
    overwrite: bool = False  # Whether a file that is there may be replaced.
    data_root: Path | None = None
    drives: str | Sequence[str] = 'test'  # A split's name, or names of drives, to compare on.
    calibrated_on: str | Sequence[str] = 'val'  # Other drives, to calibrate int8 on.
    frames: int = 32  # How many real frames are compared.
    probabilities: bool = False  # Whether the file gives them, too.

    def check(self) -> None:
        """Raise an InputError for what cannot be written, before anything is computed."""
        suffix = EXPORT_SUFFIXES[self.kind]
        if self.kind == 'torch' and self.precision != 'float32':
            raise InputError(f'--format torch has no {self.precision}; onnx and openvino have it')
        if self.path.suffix != suffix:
            raise InputError(f'{self.path}: files of --format {self.kind} end in {suffix}')
        for part in runtimes.parts_of(self.path):
            if part.exists() and not self.overwrite:
                raise InputError(f'{part}: is there already; name another --out, or give --overwrite')


def export(segmenter: Segmenter, wanted: Export, say: Callable[[str], None]) -> None:
    """Write a model's file, compare it with the model, and move it into place with its checksum.

    The model is in PyTorch on the CPU; ``say`` takes lines on what was found. An InputError says that the
    file is not accurate enough (it is deleted then), that a package is missing, or that the model cannot be
    exported.
    """
    wanted.check()
    if segmenter.thresholds is not None and any(segmenter.thresholds.dilations):
        raise InputError(
            f'{wanted.path}: not written, the thresholds dilate masks by {segmenter.thresholds.dilations} '
            'pixels, which an exported file cannot; set them to 0 in their file, or use the checkpoint'
        )
    network = segmenter.network
    kinds = {'synthetic frames': frames_of_all_sizes(network.scheme)}
    if wanted.data_root is not None:
        kinds['real frames'] = real_frames(wanted.data_root, wanted.drives, wanted.frames, network.scheme)
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.export-', dir=wanted.path.parent) as folder:
        path = Path(folder) / wanted.path.name
        say(f'writing {wanted.kind}, then comparing it with PyTorch; this takes minutes on few cores')
        _write(segmenter, wanted, path)
        candidate = Segmenter(path, trust=True)
        for what, frames in kinds.items():
            parity = compare(segmenter, candidate, frames)
            for line in parity.lines(what):
                say(line)
            _require_parity(parity, wanted, what, RESIZED_BAR if network.resizes else BAR)
        del candidate
        _put_in_place(path, wanted)


def _put_in_place(path: Path, wanted: Export) -> None:
    """Move a checked file and its parts' checksums to their final names."""
    runtimes.write_checksums(path)
    parts = runtimes.parts_of(wanted.path)
    checksums = [checksum_file(part) for part in parts]
    for old in checksums:
        old.unlink(missing_ok=True)
    if wanted.kind == 'openvino':
        # Never the graph of one model next to the weights of another.
        wanted.path.unlink(missing_ok=True)
    for part in (*parts, *checksums):
        sync(path.with_name(part.name))
        path.with_name(part.name).replace(part)
    sync(wanted.path.parent)


def _write(segmenter: Segmenter, wanted: Export, path: Path) -> None:
    """Write the file, or OpenVINO's two, at a path."""
    options: dict[str, Any] = dict(probabilities=wanted.probabilities)
    if segmenter.thresholds is not None:
        options['mask_thresholds'] = segmenter.thresholds.masks
    if wanted.kind == 'torch':
        export_program(segmenter.network, path, **options)
        return
    # Several formats in one folder share what they are made from.
    single, onnx = path.with_name('float32.onnx'), path.with_name(f'{wanted.precision}.onnx')
    if not single.exists():
        export_onnx(segmenter.network, single, **options)
    if wanted.precision == 'int8' and not onnx.exists():
        root, number = wanted.data_root, _CALIBRATION_FRAMES
        real = () if root is None else real_frames(root, wanted.calibrated_on, number)
        frames = synthetic_frames(number, (600, 800)) if root is None else (image for image, _ in real)
        quantise_onnx(single, onnx, frames)
    elif wanted.precision == 'float16':
        half_onnx(single, onnx)
    if wanted.kind == 'openvino':
        convert_to_openvino(onnx, path)
    else:
        onnx.replace(path)


def _require_parity(parity: Parity, wanted: Export, what: str, bar: float = BAR) -> None:
    """Raise an InputError for a file that is less accurate than its precision has to be."""
    if wanted.precision == 'float32':
        # Not nan either, which compares as false.
        if not parity.agreement >= bar:
            raise InputError(
                f'{wanted.path}: not written, the file labels {100 * parity.agreement:.4f} % of pixels '
                f'({what}) as PyTorch does, and {100 * bar:g} % is asked for; try another --format'
            )
        return
    loss = 100 * (1 - parity.agreement) if parity.miou is None else parity.miou[0] - parity.miou[1]
    if not loss <= wanted.max_loss:
        unit = '% of pixels' if parity.miou is None else 'points of mIoU'
        raise InputError(
            f'{wanted.path}: not written, {wanted.precision} costs {loss:.2f} {unit} ({what}), and '
            f'--max-loss is {wanted.max_loss:g}; allow more with it, or leave --half and --int8 out'
        )


# --- every format side by side ---

_FORMATS = [
    (f'{runtime} {precision}', kind, precision)
    for runtime, kind in (('ONNX Runtime', 'onnx'), ('OpenVINO', 'openvino'))
    for precision in ('float32', 'float16', 'int8')
]
_FORMATS.append(('torch.export float32', 'torch', 'float32'))


def compare_formats(
    segmenter: Segmenter,
    data_root: Path | None,
    drives: str | Sequence[str],
    calibrated_on: str | Sequence[str],
    number: int,
    starts: int,
    show: Show,
) -> dict[str, dict[str, Any]]:
    """Size, accuracy and speed of a model in every format that can run here; the formats take turns.

    The model is in PyTorch on the CPU. ``number`` frames are labelled, chosen as in `Export`; each format is
    started ``starts`` times in fresh processes.

    Returns:
        By format, for JSON: ``mb``; ``miou`` in percent, None without truth; ``same_pixels`` as in PyTorch,
        in percent; ``p50`` and ``p95`` of a frame in milliseconds; ``cold_start``, seconds from the start of
        a process to its first label map, None without ``starts``; or ``reason``, why it cannot run.
    """
    scheme, found = segmenter.network.scheme, {'PyTorch float32': {}}
    frames = frames_of_all_sizes(scheme)
    if data_root is not None:
        frames = real_frames(data_root, drives, number, scheme)
    frames = list(frames)
    with tempfile.TemporaryDirectory(prefix='lyft_formats_') as folder:
        weights = segmenter.save_pretrained(folder) / WEIGHTS_NAME
        models, paths = {'PyTorch float32': segmenter}, {'PyTorch float32': weights}
        for name, kind, precision in show(_FORMATS, len(_FORMATS), 'writing'):
            path = Path(folder, f'{precision}{EXPORT_SUFFIXES[kind]}')
            wanted = Export(kind, path, precision, data_root=data_root, calibrated_on=calibrated_on)
            found[name] = {}
            try:
                _write(segmenter, wanted, path)
                models[name], paths[name] = Segmenter(path, trust=True), path
            except InputError as error:
                found[name]['reason'] = str(error)
        for model in models.values():
            model(frames[0][0])
        seconds: dict[str, list[float]] = {name: [] for name in models}
        same, confusions = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
        for frame, label in show(frames, len(frames), 'labelling'):
            expected = None
            for name, model in models.items():
                start = time.perf_counter()
                labels = model(frame)
                seconds[name].append(1e3 * (time.perf_counter() - start))
                expected = labels if expected is None else expected
                same[name] += int((labels == expected).sum())
                if label is not None:
                    confusions[name] += confusion_matrix(label, labels, len(segmenter.classes))
        pixels = sum(frame.shape[0] * frame.shape[1] for frame, _ in frames)
        for name, path in paths.items():
            start = measure_start(str(path), frames[0][0], starts, show) if starts else None
            found[name] = dict(
                mb=sum(part.stat().st_size for part in runtimes.parts_of(path)) / 1e6,
                miou=100 * mean_iou(confusions[name]) if np.any(confusions[name]) else None,
                same_pixels=100 * same[name] / pixels,
                p50=float(np.percentile(seconds[name], 50)),
                p95=float(np.percentile(seconds[name], 95)),
                cold_start=start and start['first_label_map']['median'],
            )
    return found


def format_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """`compare_formats` as text, with the reasons of what cannot run below."""
    heads = ['MB', 'mIoU', 'p50, ms', 'p95, ms', 'frames/s', 'first, s', 'same pixels, %']
    shown = PrettyTable(['format', *heads], align='r')
    shown.align['format'] = 'l'
    for name, one in found.items():
        if 'reason' not in one:
            values = [one['mb'], one['miou'], one['p50'], one['p95'], 1e3 / one['p50'], one['cold_start']]
            cells = ['-' if value is None else f'{value:.2f}' for value in values]
            shown.add_row([name, *cells, f'{one["same_pixels"]:.4f}'])
    reasons = [f'{name}: {one["reason"]}' for name, one in found.items() if 'reason' in one]
    return '\n'.join([shown.get_string(), *reasons])
