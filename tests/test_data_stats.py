"""A prepared root's stats.json reaches weights, normalisation and hood; what somebody chose is kept."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from PIL import Image

import mmseg_unet_lyft.register  # noqa: F401
from mmseg_unet_lyft.datasets.inspection import inspect
from mmseg_unet_lyft.datasets.loading import read_label
from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset
from mmseg_unet_lyft.datasets.statistics import STATS_NAME, write_stats
from mmseg_unet_lyft.engine.checkpoint import check_weights, load_weights, read_weights
from mmseg_unet_lyft.engine.config import load_config, parse_options
from mmseg_unet_lyft.engine.data_stats import apply_stats
from mmseg_unet_lyft.errors import InputError
from mmseg_unet_lyft.evaluation.iou_metric import LyftIoUMetric


@pytest.fixture
def prepared(kaggle):
    """Two training frames and one to validate; vehicles share the lower left quarter."""
    for stem, other in (('F1-0', 7), ('F1-1', 0), ('F3-0', 1)):
        tags = np.full((24, 32), other, np.uint8)
        tags[12:, :16] = 10
        kaggle.add(stem, tags=tags)
    write_stats(kaggle.root / STATS_NAME, inspect(kaggle.root, workers=1).stats)
    return kaggle.root


def configured(root, name: str = 'unet_lyft_bn.py', *options: str):
    config = load_config(name, parse_options([*options, f'data_root={root}']))
    return config, apply_stats(config, options)


def test_measured_values_of_the_training_drives_replace_the_published_ones(prepared):
    config, said = configured(prepared)
    weights = config.model.decode_head.loss_decode.class_weight
    # Over F1: road 37.5 %, None 37.5 %, vehicle 25 %; the median share is 37.5. F3's class 1 is not trained.
    assert weights[0] == weights[7] == 1
    assert weights[10] == pytest.approx((37.5 / 25) ** 0.5, abs=1e-4)
    assert weights[1] == 1
    folder = prepared / 'dataA/dataA/CameraRGB'
    pixels = np.concatenate([np.asarray(Image.open(folder / f'F1-{n}.png')).reshape(-1, 3) for n in (0, 1)])
    np.testing.assert_allclose(config.model.data_preprocessor.mean, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(config.model.data_preprocessor.std, pixels.std(axis=0), atol=1e-3)
    assert said == [f'{prepared / STATS_NAME}: measured class_weight, mean, std used']


def test_what_was_used_is_recorded_in_the_config(prepared, tmp_path):
    config, _ = configured(prepared)
    assert config.data_stats.used['class_weight'] == config.model.decode_head.loss_decode.class_weight
    assert config.data_stats.used['mean'] == config.model.data_preprocessor.mean
    assert config.data_stats.kept == []
    assert config.data_stats.path == str(prepared / STATS_NAME)
    config.dump(tmp_path / 'dumped.py')
    assert config.data_stats.sha256 in (tmp_path / 'dumped.py').read_text()


def test_a_root_without_stats_changes_nothing(kaggle):
    kaggle.add('F1-0')
    config, said = configured(kaggle.root)
    plain = load_config('unet_lyft_bn.py', dict(data_root=str(kaggle.root)))
    assert said == []
    assert config.to_dict() == plain.to_dict()


def test_options_of_the_command_are_kept(prepared):
    published = load_config('unet_lyft_bn.py').class_weight
    given = f'class_weight={list(published)}'.replace(' ', '')
    config, said = configured(prepared, 'unet_lyft_bn.py', given, 'model.data_preprocessor.mean=[1,2,3]')
    assert config.model.decode_head.loss_decode.class_weight == published
    assert config.model.data_preprocessor.mean == [1, 2, 3]
    assert said[0].endswith(
        'nothing used; kept: class_weight of --cfg-options; mean and std of --cfg-options'
    )


def test_weights_and_statistics_that_a_config_chose_are_kept(prepared):
    demo, said = configured(prepared, 'unet_lyft_demo.py')
    assert demo.model.decode_head.loss_decode.class_weight == demo.class_weight
    assert "kept: class_weight, the config's own" in said[0]
    road, _ = configured(prepared, 'unet_lyft_road.py')
    assert road.model.decode_head.loss_decode.class_weight is None
    resnet, said = configured(prepared, 'unet_lyft_resnet18.py', 'pretrained=open-mmlab://resnet18_v1c')
    assert resnet.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert said[0].endswith('kept: mean and std, those of the loaded weights')


def test_challenge_weights_leave_the_measured_hood_out(prepared):
    config, _ = configured(prepared, 'unet_lyft_challenge.py')
    # The vehicles of F1 are all hood: background 62.5, road 37.5, no vehicle; median 50.
    np.testing.assert_allclose(
        config.model.decode_head.loss_decode.class_weight, [0.8**0.5, (4 / 3) ** 0.5, 1], atol=1e-4
    )


def test_the_measured_hood_is_taken_out_of_labels_and_scores(prepared):
    init_default_scope('mmseg')
    frames = LyftCarlaDataset(
        str(prepared),
        scheme='challenge3',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')],
    )
    label = frames[0]['gt_seg_map']
    # The published hood would take the lowest rows; the measured one is the lower left quarter.
    assert not (label == 2).any()
    assert (label[:12] == 1).all()
    path = frames.get_data_info(0)['seg_map_path']
    assert (read_label(path, 'challenge3')[12:20, :16] == 2).any()
    metric = LyftIoUMetric()
    metric.dataset_meta = LyftCarlaDataset(str(prepared)).metainfo
    truth = np.full((1, 24, 32), 7)
    truth[:, 12:, :16] = 10
    truth[:, 0, 0] = 10
    pred = truth.copy()
    pred[:, 0, 0] = 7
    sample = dict(
        gt_sem_seg=dict(data=torch.from_numpy(truth)), pred_sem_seg=dict(data=torch.from_numpy(pred))
    )
    metric.process({}, [sample])
    scores = metric.evaluate(1)
    # With the hood 192 of 193 vehicle pixels are right, without it none of one.
    assert scores['IoU.Vehicles'] == pytest.approx(100 * 192 / 193, abs=1e-3)
    assert scores['IoU.Vehicles_without_hood'] == 0


def test_a_measured_root_without_a_hood_has_none(kaggle):
    kaggle.add('F1-0', tags=10)
    kaggle.add('F1-1', tags=7)
    write_stats(kaggle.root / STATS_NAME, inspect(kaggle.root, workers=1).stats)
    label = read_label(kaggle.root / 'dataA/dataA/CameraSeg/F1-0.png', 'challenge3', str(kaggle.root))
    assert (label == 2).all()


def test_a_scheme_for_another_simulator_is_refused(prepared):
    with pytest.raises(InputError, match='scheme carla13_from_0.9.14 takes the tags of CARLA 0.9.14'):
        LyftCarlaDataset(str(prepared), scheme='carla13_from_0.9.14')


def build(config):
    init_default_scope('mmseg')
    return MODELS.build(config.model)


def test_statistics_travel_in_the_weights(prepared, tmp_path):
    trained, _ = configured(prepared)
    model = build(trained)
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    # Built from the package's config, as test and predict do.
    other = build(load_config('unet_lyft_bn.py'))
    check_weights(other, read_weights(path), path)
    load_checkpoint(other, path, map_location='cpu')
    np.testing.assert_allclose(
        other.data_preprocessor.mean.ravel(), trained.model.data_preprocessor.mean, rtol=1e-6
    )
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    batch = pseudo_collate([dict(inputs=image)])
    torch.testing.assert_close(
        model.data_preprocessor(batch)['inputs'], other.data_preprocessor(batch)['inputs'], rtol=0, atol=0
    )


def test_weights_without_statistics_keep_the_configs(tmp_path):
    model = build(load_config('unet_lyft_bn.py'))
    weights = {name: value for name, value in model.state_dict().items() if 'data_preprocessor' not in name}
    assert len(weights) == len(model.state_dict()) - 2
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=weights, meta={}), path)
    check_weights(model, read_weights(path), path)
    assert model.load_state_dict(weights) == ([], [])
    # Starting from them says nothing of statistics, and those alone are no weights to start from.
    assert 'not in the file' not in load_weights(model, read_weights(path), path)
    alone = {name: value for name, value in model.state_dict().items() if 'data_preprocessor' in name}
    path = str(tmp_path / 'alone.pth')
    torch.save(dict(state_dict=alone, meta={}), path)
    with pytest.raises(InputError, match='none of its 2 weights has a name and shape of this model'):
        load_weights(model, read_weights(path), path)
    np.testing.assert_allclose(model.data_preprocessor.mean.ravel(), [123.675, 116.28, 103.53], rtol=1e-6)


def test_starting_from_weights_keeps_their_statistics(prepared):
    config = load_config('unet_lyft_bn.py', dict(data_root=str(prepared)))
    said = apply_stats(config, from_weights=True)
    assert config.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert said[0].endswith('measured class_weight used; kept: mean and std, those of the loaded weights')


def test_crops_of_training_leave_the_measured_hood_out_too(prepared):
    init_default_scope('mmseg')
    crop = dict(type='LyftCropFirst', scale=(32, 24), ratio_range=(1, 1), crop_size=(24, 32), flip_prob=0.0)
    frames = LyftCarlaDataset(str(prepared), scheme='challenge3', pipeline=[crop])
    label = frames[0]['gt_seg_map']
    assert (label[:12] == 1).all()
    assert (label[12:, :16] == 0).all()
    assert (label[12:, 16:] == 1).all()
