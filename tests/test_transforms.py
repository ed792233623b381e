"""Loading labels, and crop-first augmentation against mmseg's own transforms: pixels and distributions."""

import re
from statistics import NormalDist

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.datasets.transforms import PhotoMetricDistortion
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.carla import SCHEMES, tags_to_ids
from mmseg_unet_lyft.datasets.layout import find_pairs
from mmseg_unet_lyft.datasets.transforms import (
    NEUTRAL_COLOUR,
    LyftPhotoMetricDistortion,
    LyftRandomResizedCrop,
    LyftWeather,
    PackLyftInputs,
    Window,
    axis_window,
    change_colour,
    is_dominated,
    random_colour,
    window_ids,
)
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.synthetic.scenes import draw_frame

HEIGHT, WIDTH = 96, 128
CROP = (80, 80)
SAMPLES = 2000
# Chance of a false alarm over all comparisons of one test.
ALARM = 1e-3


def stock():
    init_default_scope('mmseg')
    return Compose(
        [
            dict(type='RandomResize', scale=(WIDTH, HEIGHT), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=CROP, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
        ]
    )


def frame(pair, **more):
    return dict(pair, scheme='carla13', seg_fields=[], **more)


@pytest.fixture(scope='module')
def scene():
    """A synthetic frame at 600x800: image BGR and tags."""
    image, tags = draw_frame('F1', 0)
    return np.ascontiguousarray(image[..., ::-1]), tags


@pytest.mark.parametrize(('scale', 'start'), [(1, 40), (2, 120)])
def test_a_window_of_an_axis_begins_at_its_pixel_and_needs_few_more(scale, start):
    # Where both grids meet, source pixel p is output pixel scale * p.
    first, end, place = axis_window(100, 100 * scale, start, 20)
    assert scale * first + place == start
    assert scale * (end - first) >= place + 20
    assert end - first <= 20 / scale + 16 + 4


def test_a_window_shows_what_resizing_the_complete_frame_would(scene):
    image, tags = scene
    random = np.random.default_rng(0)
    shares, differences = [], []
    for _ in range(40):
        ratio = random.uniform(0.5, 2)
        resized = (int(600 * ratio + 0.5), int(800 * ratio + 0.5))
        shape = tuple(min(side, 256) for side in resized)
        corner = tuple(
            int(random.integers(side - part + 1)) for side, part in zip(resized, shape, strict=True)
        )
        window = Window((600, 800), resized, corner, shape)
        cut = tuple(slice(start, start + part) for start, part in zip(corner, shape, strict=True))
        label = window.resize(tags[window.source], cv2.INTER_NEAREST)
        expected = cv2.resize(tags, resized[::-1], interpolation=cv2.INTER_NEAREST)[cut]
        assert label.shape == shape
        shares.append((label != expected).mean())
        crop = window.resize(image[window.source], cv2.INTER_LINEAR)
        expected = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_LINEAR)[cut]
        differences.append(np.abs(crop.astype(int) - expected).mean())
    # Both grids meet within 1/30 pixel nearly always; only pixels at edges can tell.
    assert np.mean(shares) < 0.004
    assert np.mean(differences) < 0.4


def test_a_frame_that_fits_into_the_crop_is_mmsegs_pixel_for_pixel(scene):
    image, tags = scene
    window = Window((600, 800), (310, 413), (0, 0), (310, 413))
    np.testing.assert_array_equal(
        window.resize(image[window.source], cv2.INTER_LINEAR), cv2.resize(image, (413, 310))
    )
    np.testing.assert_array_equal(
        window.resize(tags[window.source], cv2.INTER_NEAREST),
        cv2.resize(tags, (413, 310), interpolation=cv2.INTER_NEAREST),
    )


@pytest.mark.parametrize('scheme', ['carla13', 'challenge3', 'road'])
def test_ids_of_a_window_are_those_of_the_complete_label_cut_out(scene, scheme):
    _, tags = scene
    # Rows of the hood among them.
    cut = (slice(400, 590), slice(30, 700))
    expected = tags_to_ids(tags, SCHEMES[scheme])[cut]
    np.testing.assert_array_equal(window_ids(tags, cut, SCHEMES[scheme]), expected)


@pytest.mark.parametrize(
    ('pixels', 'dominated'),
    [((75, 25), True), ((74, 26), False), ((100,), True), ((25, 75), True), ((40, 60), False)],
)
def test_a_class_dominates_from_its_share_on(pixels, dominated):
    label = np.repeat(np.arange(len(pixels), dtype=np.uint8), pixels).reshape(10, 10)
    assert is_dominated(label, 0.75) is dominated


def test_a_glance_that_errs_does_not_change_the_answer():
    # Every 16th pixel is of class 1, nearly all others of class 2.
    label = np.full((160, 160), 2, dtype=np.uint8)
    label[::16, ::16] = 1
    assert is_dominated(label, 0.75)
    # A full count finds 3 of 4 in class 2 wherever the glance looked.
    label[:48] = 1
    assert not is_dominated(label, 0.75)


class Drawn:
    """Stands for numpy.random in mmseg's transform: gives chosen numbers."""

    def __init__(self, coins, numbers):
        self.coins, self.numbers = iter(coins), iter(numbers)

    def randint(self, low, high=None):
        return next(self.coins) if high is None else next(self.numbers)

    def uniform(self, low, high):
        return next(self.numbers)


@pytest.mark.parametrize(
    ('coins', 'numbers', 'colour'),
    [
        # brightness, mode, contrast, saturation, hue, as mmseg asks.
        ([1, 1, 1, 0, 0], [20.5, 1.25], [20.5, 1.25, 1, 0, 1]),
        ([1, 0, 0, 0, 1], [-31.0, 0.625], [-31, 1, 1, 0, 0.625]),
        ([0, 1, 0, 1, 0], [0.5], [0, 1, 0.5, 0, 1]),
        ([0, 1, 0, 0, 1], [-18], [0, 1, 1, -18, 1]),
        ([0, 0, 0, 0, 0], [], NEUTRAL_COLOUR),
    ],
)
def test_a_colour_change_is_mmsegs_pixel_for_pixel(scene, monkeypatch, coins, numbers, colour):
    image = scene[0][200:400, 100:500]
    stock_module = 'mmseg.datasets.transforms.transforms.random'
    monkeypatch.setattr(stock_module, Drawn(coins, numbers))
    expected = PhotoMetricDistortion().transform(dict(img=image.copy()))['img']
    np.testing.assert_array_equal(change_colour(image, colour), expected)


def test_saturation_and_hue_at_once_are_mmsegs_but_for_one_rounding(scene, monkeypatch):
    image = scene[0][200:400, 100:500]
    monkeypatch.setattr('mmseg.datasets.transforms.transforms.random', Drawn([0, 1, 0, 1, 1], [1.3, 11]))
    expected = PhotoMetricDistortion().transform(dict(img=image.copy()))['img']
    difference = np.abs(change_colour(image, [0, 1, 1.3, 11, 1]).astype(int) - expected)
    # mmseg goes to bytes of BGR and back in between: hue of dark pixels has few steps there.
    assert difference.mean() < 1
    assert np.quantile(difference, 0.99) <= 6


def test_colours_are_drawn_as_mmseg_draws_them():
    colours = np.stack([random_colour((1, position)) for position in range(4000)])
    changed = colours != np.float32(NEUTRAL_COLOUR)
    # Standard error of a share of a half over 4,000: 0.8 %; contrast is before or after, a quarter each.
    shares = [0.5, 0.25, 0.5, 0.5 * 35 / 36, 0.25]
    np.testing.assert_allclose(changed.mean(axis=0), shares, atol=4.5 * 0.0079)
    assert not (changed[:, 1] & changed[:, 4]).any()
    for column, low, high in ((0, -32, 32), (1, 0.5, 1.5), (2, 0.5, 1.5), (4, 0.5, 1.5)):
        values = colours[changed[:, column], column]
        # Uniform: the largest gap of its distribution function is below Kolmogorov's bound.
        steps = np.arange(1, len(values) + 1) / len(values)
        gap = np.abs(np.sort(values - low) / (high - low) - steps).max()
        assert gap < kolmogorov_bound(len(values))
    hues = colours[:, 3]
    assert set(hues[changed[:, 3]]) == set(range(-18, 18)) - {0}


def kolmogorov_bound(*counts, alarm=1e-4):
    """Largest gap of two distribution functions (or one and the true one) by chance.

    Source: Kolmogorov-Smirnov, large samples: sqrt(-ln(alarm / 2) / 2 / n), 1/n = 1/n1 + 1/n2.
    """
    return np.sqrt(-np.log(alarm / 2) / 2 * sum(1 / count for count in counts))


@pytest.mark.parametrize('is_dominating', [False, True])
def test_over_2000_samples_crops_lie_where_mmsegs_do(kaggle, is_dominating):
    # Blue is the column, green the row. Of two classes one may dominate crops, which are chosen again then.
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    image = np.dstack([columns, rows, 0 * rows]).astype(np.uint8)
    tags = (7 + (columns > WIDTH * 2 // 3 if is_dominating else columns // 4 % 2)).astype(np.uint8)
    path, _ = kaggle.add('F1-0', tags=tags)
    cv2.imwrite(str(path), image)
    pair = find_pairs(kaggle.root, ['F1'])[0]
    ours, theirs = LyftRandomResizedCrop((WIDTH, HEIGHT), (0.5, 2.0), CROP), stock()
    np.random.seed(6)  # noqa: NPY002
    found = [[], []]
    for position in range(SAMPLES):
        given = dict(img=image, gt_seg_map=tags, seg_fields=['gt_seg_map'], img_shape=(HEIGHT, WIDTH))
        for results, numbers in zip(
            (ours(frame(pair, random_key=(6, position))), theirs(given)), found, strict=True
        ):
            crop = results['img']
            corners = (crop[..., 0].min(), crop[..., 0].max(), crop[..., 1].min(), crop[..., 1].max())
            numbers.append([*corners, int(crop[0, 0, 0]) - int(crop[0, -1, 0]), crop.shape[0], crop.shape[1]])
    assert_same_distribution(*(np.array(numbers, dtype=float) for numbers in found))


def assert_same_distribution(ours, theirs):
    """Compare all columns of two sets of samples, in mean and in distribution."""
    count, columns = ours.shape
    # The difference of two means of independent samples, in standard errors.
    errors = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / count)
    limit = NormalDist().inv_cdf(1 - ALARM / 2 / columns)
    distances = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / np.maximum(errors, 1e-12)
    assert (distances[errors > 0] < limit).all(), distances.round(2)
    for column in range(columns):
        places = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        functions = [
            np.searchsorted(np.sort(samples[:, column]), places, side='right') / count
            for samples in (ours, theirs)
        ]
        gap = np.abs(functions[0] - functions[1]).max()
        assert gap < kolmogorov_bound(count, count, alarm=ALARM / columns), column


def loaded(kaggle, *steps: dict, scheme: str = 'carla13') -> tuple[dict, np.ndarray]:
    """A frame after loading image and label with more steps around; and its tags."""
    init_default_scope('mmseg')
    tags = np.random.default_rng(0).integers(0, 13, (24, 32), dtype=np.uint8)
    image, label = kaggle.add('F1-0', tags=tags)
    given = dict(img_path=str(image), seg_map_path=str(label), scheme=scheme, seg_fields=[])
    return Compose([dict(type='LoadImageFromFile'), *steps])(given), tags


def test_labels_are_loaded_as_ids_and_later_steps_move_them_along(kaggle):
    results, tags = loaded(kaggle, dict(type='LoadLyftLabel'), scheme='challenge3')
    # By hand: 6 and 7 are road, 10 is vehicle, and rows from 21 of 24 are all hood.
    expected = np.select([np.isin(tags, [6, 7]), tags == 10], [1, 2], 0)
    assert results['seg_fields'] == ['gt_seg_map']
    np.testing.assert_array_equal(results['gt_seg_map'][:20], expected[:20])
    assert not (results['gt_seg_map'][21:] == 2).any()
    steps = dict(type='LoadLyftLabel'), dict(type='RandomFlip', prob=1.0)
    flipped, _ = loaded(kaggle, *steps, scheme='challenge3')
    np.testing.assert_array_equal(flipped['gt_seg_map'], results['gt_seg_map'][:, ::-1])


def test_the_label_and_the_image_stay_together(kaggle):
    # The image shows its own label: grey level 10 times the class.
    tags = np.kron(np.random.default_rng(0).integers(0, 13, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    image_path, _ = kaggle.add('F1-0', tags=tags)
    Image.fromarray(np.dstack([tags * 10] * 3)).save(image_path)
    crop = LyftRandomResizedCrop((WIDTH, HEIGHT), (0.5, 2.0), CROP)
    pair = find_pairs(kaggle.root, ['F1'])[0]
    for position in range(30):
        results = crop(frame(pair, random_key=(0, position)))
        # Away from the edges of the blocks, which bilinear interpolation blurs.
        agreeing = np.abs(results['img'][..., 0] / 10 - results['gt_seg_map']) < 0.05
        assert agreeing.mean() > 0.7
        sharp = cv2.erode(
            (cv2.Laplacian(results['img'], cv2.CV_16S)[..., 0] == 0).astype(np.uint8), np.ones((3, 3))
        )
        assert agreeing[sharp == 1].all()


def test_what_is_wrong_with_a_label_names_its_file(kaggle):
    image, label = kaggle.add('F1-0', tags=37)
    given = frame(dict(img_path=str(image), seg_map_path=str(label)), random_key=(0, 1))
    crop = LyftRandomResizedCrop((32, 24), (1.0, 1.0), (8, 8))
    with pytest.raises(InputError, match=re.escape(f'{label}: class id 37 at (row 0, col 0)')):
        crop(dict(given))
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(label)
    for transform in (crop, Compose([dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')])):
        with pytest.raises(InputError, match=re.escape(f'{label}: label of 5x6') + f'.*{image} is 24x32'):
            transform(dict(given))


@pytest.mark.parametrize(('ratio_range', 'crop_size'), [((2.0, 1.0), (8, 8)), ((1.0, 2.0), (0, 8))])
def test_impossible_sizes_are_refused(ratio_range, crop_size):
    named = f'LyftRandomResizedCrop: ratio_range={ratio_range}, crop_size={crop_size}, scale=(32, 24)'
    with pytest.raises(InputError, match=re.escape(named)):
        LyftRandomResizedCrop((32, 24), ratio_range, crop_size)


def test_a_saved_config_that_leaves_colours_to_the_loader_is_still_built():
    LyftPhotoMetricDistortion(on_device=False)
    with pytest.raises(InputError, match='on_device=True'):
        LyftPhotoMetricDistortion(on_device=True)


def test_packing_pads_below_and_to_the_right():
    image, label = np.full((2, 3, 3), 9, np.uint8), np.full((2, 3), 7, np.uint8)
    results = dict(img=image, gt_seg_map=label, crop_size=(3, 5), img_shape=(2, 3), img_path='a.png')
    packed = PackLyftInputs()(results)
    assert packed['pixels'].dtype == torch.uint8
    pixels = packed['pixels'].numpy()
    expected = np.zeros((3, 5, 3))
    expected[:2, :3] = 9
    np.testing.assert_array_equal(pixels[:45].reshape(3, 5, 3), expected)
    np.testing.assert_array_equal(
        pixels[45:].reshape(3, 5), [[7, 7, 7, 255, 255], [7, 7, 7, 255, 255], [255] * 5]
    )
    assert packed['meta'] == dict(img_path='a.png', img_shape=(2, 3))
    assert packed['crop_size'] == (3, 5)


@pytest.mark.parametrize('change', LyftWeather.changes)
def test_a_change_of_weather_is_seen_but_leaves_the_scene(change, scene):
    image, _ = scene
    changed = change(image, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert np.abs(changed.astype(int) - image).mean() > 1
    # What was brighter than its surroundings still is.
    assert np.corrcoef(image.mean(axis=2).ravel(), changed.mean(axis=2).ravel())[0, 1] > 0.6


def test_weather_follows_from_the_samples_key_and_its_probability():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)

    def changed(prob, position):
        return LyftWeather(prob)(dict(img=image.copy(), random_key=(3, position)))['img']

    np.testing.assert_array_equal(changed(0.5, 7), changed(0.5, 7))
    np.testing.assert_array_equal(changed(0.0, 7), image)
    # 1 - 0.75 ** 6 = 0.82 of the samples have some change.
    share = np.mean([(changed(0.25, position) != image).any() for position in range(400)])
    assert share == pytest.approx(0.82, abs=0.06)
