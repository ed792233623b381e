"""Each tracker of the train command, run for real, holds the scores that the run's own log has."""

import time

import pytest

from mmseg_unet_lyft.report.run_page import read_scalars

from .conftest import train_tiny

pytestmark = pytest.mark.slow


def train_tracked(drawn_root, work_dir, tracker):
    """mIoU of the validation after step 2, in the log of the run itself."""
    pytest.importorskip(tracker)
    steps = ('max_iters=2', 'val_interval=2')
    assert train_tiny(drawn_root, work_dir, f'--{tracker}', '--seed', '0', options=steps) == 0
    (entry,) = [entry for entry in read_scalars(work_dir) if 'mIoU' in entry]
    return entry['mIoU']


def test_tensorboard_has_the_scores(drawn_root, tmp_path):
    miou = train_tracked(drawn_root, tmp_path / 'run', 'tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / 'run').glob('*/vis_data/events.out.tfevents.*')
    found = EventAccumulator(str(events))
    found.Reload()
    (point,) = found.Scalars('mIoU')
    assert (point.step, point.value) == (2, pytest.approx(miou))


def test_wandb_has_the_scores_without_a_server(drawn_root, tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_MODE', raising=False)
    for name in ('WANDB_CONFIG_DIR', 'WANDB_CACHE_DIR', 'WANDB_DATA_DIR'):
        monkeypatch.setenv(name, str(tmp_path / 'wandb_home'))
    miou = train_tracked(drawn_root, tmp_path / 'run', 'wandb')
    (file,) = (tmp_path / 'run').glob('**/offline-run-*/run-*.wandb')
    # Each name that was logged is next to its value as JSON; wandb's own process may still be writing.
    deadline = time.monotonic() + 60
    while f'{miou}'.encode() not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(1)
    assert f'{miou}'.encode() in file.read_bytes()


def test_mlflow_has_the_scores_in_a_file_of_the_work_dir(drawn_root, tmp_path):
    miou = train_tracked(drawn_root, tmp_path / 'run', 'mlflow')
    from mlflow import MlflowClient

    client = MlflowClient(f'sqlite:///{tmp_path / "run/mlflow.db"}')
    experiment = client.get_experiment_by_name('unet_lyft_bn')
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == 'FINISHED'
    assert found.data.metrics['mIoU'] == pytest.approx(miou)
    assert found.data.params['model.type'] == 'LyftSegmentor'
    assert list((tmp_path / 'run/mlflow_artifacts').rglob('config.py'))
