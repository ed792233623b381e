"""Tags of newer CARLA releases become the 13 classes; each row is written out from CARLA's own tables."""

import re

import numpy as np
import pytest
from PIL import Image

from mmseg_unet_lyft.datasets.labels import SCHEMES, get_scheme, tags_to_ids
from mmseg_unet_lyft.datasets.simulators import CARLA_CLASSES, SIMULATORS
from mmseg_unet_lyft.errors import InputError

# Value, name, class. https://github.com/carla-simulator/carla/pull/3251 (0.9.10 to 0.9.13).
FROM_0_9_10 = """
0 None None | 1 Buildings Buildings | 2 Fences Fences | 3 Other Other | 4 Pedestrians Pedestrians
5 Poles Poles | 6 RoadLines RoadLines | 7 Roads Roads | 8 Sidewalks Sidewalks | 9 Vegetation Vegetation
10 Vehicles Vehicles | 11 Walls Walls | 12 TrafficSigns TrafficSigns | 13 Sky None | 14 Ground None
15 Bridge None | 16 RailTrack None | 17 GuardRail Fences | 18 TrafficLight TrafficSigns | 19 Static Other
20 Dynamic Other | 21 Water None | 22 Terrain Vegetation
"""
# LibCarla/source/carla/rpc/ObjectLabel.h (from 0.9.14).
FROM_0_9_14 = """
0 None None | 1 Roads Roads | 2 Sidewalks Sidewalks | 3 Buildings Buildings | 4 Walls Walls | 5 Fences Fences
6 Poles Poles | 7 TrafficLight TrafficSigns | 8 TrafficSigns TrafficSigns | 9 Vegetation Vegetation
10 Terrain Vegetation | 11 Sky None | 12 Pedestrians Pedestrians | 13 Rider Pedestrians | 14 Car Vehicles
15 Truck Vehicles | 16 Bus Vehicles | 17 Train Vehicles | 18 Motorcycle Vehicles | 19 Bicycle Vehicles
20 Static Other | 21 Dynamic Other | 22 Other Other | 23 Water None | 24 RoadLines RoadLines | 25 Ground None
26 Bridge None | 27 RailTrack None | 28 GuardRail Fences
"""


@pytest.mark.parametrize(('first', 'table'), [('0.9.10', FROM_0_9_10), ('0.9.14', FROM_0_9_14)])
def test_each_tag_of_a_newer_release_becomes_its_class(first, table):
    rows = [row.split() for row in re.split(r'[|\n]', table.strip())]
    assert [int(value) for value, _, _ in rows] == list(range(len(rows)))
    assert SIMULATORS[first].tags == tuple(name for _, name, _ in rows)
    scheme = get_scheme(f'carla13_from_{first}')
    raw_label = np.arange(len(rows), dtype=np.uint8)[None]
    expected = [CARLA_CLASSES.index(name) for _, _, name in rows]
    np.testing.assert_array_equal(tags_to_ids(raw_label, scheme)[0], expected)


def test_the_published_shares_stay_with_the_classes():
    for name in ('carla13_from_0.9.10', 'carla13_from_0.9.14'):
        assert SCHEMES[name].classes == CARLA_CLASSES
        np.testing.assert_array_equal(SCHEMES[name].train_percent, SCHEMES['carla13'].train_percent)


@pytest.mark.parametrize(('name', 'largest'), [('carla13', 12), ('carla13_from_0.9.10', 22)])
def test_a_tag_beyond_the_release_is_refused_and_names_the_newer_schemes(name, largest):
    raw_label = np.full((3, 4), largest + 1, np.uint8)
    message = f'class id {largest + 1} at (row 0, col 0); ids go from 0 to {largest}.'
    with pytest.raises(InputError, match=re.escape(message) + '.*scheme carla13_from_0.9.10 or carla13_from'):
        tags_to_ids(raw_label, get_scheme(name))


def test_a_recording_of_a_newer_carla_loads_as_the_13_classes(kaggle):
    pytest.importorskip('mmseg')
    from mmengine.registry import init_default_scope

    from mmseg_unet_lyft.datasets.lyft_carla import LyftCarlaDataset

    init_default_scope('mmseg')
    _, label = kaggle.add('F901-0')
    tags = np.full((24, 32), 1, np.uint8)
    tags[:12] = 11
    Image.fromarray(np.dstack([tags, 0 * tags, 0 * tags])).save(label)
    frames = LyftCarlaDataset(
        str(kaggle.root),
        split=['F901'],
        scheme='carla13_from_0.9.14',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadLyftLabel')],
    )
    loaded = frames[0]['gt_seg_map']
    assert (loaded[:12] == 0).all()
    assert (loaded[12:] == 7).all()
