"""Label images: palette PNGs of the class ids and overlays, in the folder structure of the input.

python tools/predict.py work_dirs/unet_lyft_bn/best_mIoU_iter_20000.pth frames/ --out predictions
"""

from pathlib import Path
from pprint import pformat

from ..errors import InputError, shorten_list
from .console import CommandParser, guarded, progress, say
from .options import (
    add_label_arguments,
    add_model_arguments,
    add_uncertainty,
    model_config,
    open_segmenter,
    require_runtime,
    split_words,
)

_SHOWN = 20  # Problems printed at most.


def _predict(argv: list[str] | None) -> None:
    parser = CommandParser(description=__doc__)
    add_model_arguments(parser, "image files, folders, patterns ('frames/**/*.png')")
    add = parser.add_argument
    add('--out', default='predictions', metavar='DIR', help='folder for results (predictions)')
    add('--palette', action='store_true', help='palette PNGs: pixels are ids, shown in colour')
    add('--overlay', action='store_true', help='the images under their colours')
    add('--ids', action='store_true', help='grey PNGs of the ids')
    add_uncertainty(parser, 'grey PNGs of the entropy over T passes of Monte-Carlo dropout (10)')
    add_label_arguments(parser, 'replace existing results')
    # Options may stand between the model and the input.
    args = parser.parse_intermixed_args(argv)
    config, model, inputs = split_words(args.words)
    require_runtime(config, model)
    from ..inference.folder import KINDS, PROBLEMS_NAME, Outputs, find_images, predict_images, start_folder
    from ..inference.frames import IMAGE_SUFFIXES

    # By default: outputs in colour, since grey PNGs of small ids look black.
    kinds = tuple(kind for kind in KINDS if getattr(args, kind) not in (False, None)) or Outputs.kinds
    outputs = Outputs(Path(args.out), kinds, args.opacity, args.uncertainty or Outputs.passes)
    images, left_out = find_images(inputs, outputs.folder)
    config = model_config(args, config)
    text = config and pformat(config.to_dict())
    segmenter = open_segmenter(args, config, model)
    if args.uncertainty is not None:
        segmenter.network.check_passes(args.uncertainty)
    files = dict(model=model, thresholds=args.thresholds)
    places = [place for _, place in images]
    start_folder(outputs, files, text, args.cfg_options, args.overwrite, places)
    done = predict_images(
        segmenter, progress(images, len(images), 'predicting'), outputs, int(args.max_megapixels * 1e6)
    )
    there = f', {done.present} were already there' if done.present else ''
    say(f'wrote {", ".join(kinds)} of {done.written} images{there} to {outputs.folder}')
    if left_out:
        listed = shorten_list(f'{reason} ({count})' for reason, count in left_out.most_common())
        say(f'left out {left_out.total()} files: {listed}; images are {", ".join(sorted(IMAGE_SUFFIXES))}')
    if done.problems:
        raise InputError(
            f'{len(done.problems)} of {len(images)} images could not be labelled, all in '
            f'{outputs.folder / PROBLEMS_NAME}:',
            *done.problems[:_SHOWN],
        )


main = guarded(_predict)
