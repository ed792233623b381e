"""The memory that is left, as control groups tell it."""

import pytest

from mmseg_unet_lyft.engine.memory import _left_of_group

VERSION_2 = ('memory.max', 'memory.current', 'memory.stat', 'inactive_file')
VERSION_1 = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'memory.stat', 'total_inactive_file')


@pytest.mark.parametrize(('folder', 'names'), [('.', VERSION_2), ('memory', VERSION_1)])
def test_cached_files_of_a_container_count_as_free(tmp_path, folder, names):
    limit, used, statistics, key = names
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / limit).write_text('1000\n')
    (tmp_path / folder / used).write_text('900\n')
    assert list(_left_of_group(tmp_path)) == [100]
    (tmp_path / folder / statistics).write_text(f'anon 250\n{key}_other 7\n{key} 600\nactive_file 50\n')
    assert list(_left_of_group(tmp_path)) == [700]
    # The two numbers are not of the same moment.
    (tmp_path / folder / used).write_text('500\n')
    assert list(_left_of_group(tmp_path)) == [1000]


def test_a_container_without_a_limit_tells_nothing(tmp_path):
    (tmp_path / 'memory.max').write_text('max\n')
    (tmp_path / 'memory.current').write_text('900\n')
    assert list(_left_of_group(tmp_path)) == []
