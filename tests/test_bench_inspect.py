"""The inspection's benchmark decodes what the inspection reads, and gives both sides."""

import pytest

from mmseg_unet_lyft.bench.inspect import decode_all, measure


def test_both_sides_read_every_file(kaggle):
    for stem in ('F1-0', 'F1-1', 'F2-0'):
        kaggle.add(stem)
    # Image and label of 24x32 pixels in three channels each.
    assert decode_all(kaggle.root, workers=1) == 3 * 2 * 24 * 32 * 3
    found = measure(kaggle.root, rounds=2, workers=1)
    assert (found['frames'], found['problems'], found['workers']) == (3, 0, 1)
    ratios = [
        whole / decode
        for whole, decode in zip(found['inspect_seconds'], found['decode_seconds'], strict=True)
    ]
    assert len(ratios) == 2
    assert found['ratio'] == pytest.approx(sum(ratios) / 2)
