"""Reading a config with options: values, knobs, other keys, mistakes, and where data come from."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_unet_lyft.engine.config import find_config, load_config, parse_options
from mmseg_unet_lyft.errors import InputError

CONFIGS = Path(__file__).parents[1] / 'configs'
REFERENCE, DEMO = str(CONFIGS / 'unet_lyft.py'), str(CONFIGS / 'unet_lyft_demo.py')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


# --- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('5', 5),
        ('-1', -1),
        ('1e-3', 0.001),
        ('None', None),
        ('True', True),
        ('true', True),
        ('false', False),
        ('val', 'val'),
        ('two words', 'two words'),
        ('/data/run_1_2/a b', '/data/run_1_2/a b'),
        ('a=b', 'a=b'),
        ('', ''),
        ('(64,96)', (64, 96)),
        ('64,96', (64, 96)),
        ('[]', []),
        ('[64, 0.5, None, true]', [64, 0.5, None, True]),
        # mmengine reads 02_00 as the number 200, Python 10_00 as 1000.
        ('02_00', '02_00'),
        ('10_00', '10_00'),
        ('[10_00, 3]', ['10_00', 3]),
        ('10_00,02_00', ('10_00', '02_00')),
        ("'02_00'", '02_00'),
        ('[02_00,F1]', ['02_00', 'F1']),
        ('["02_00", F1]', ['02_00', 'F1']),
        ("['02_00','F1']", ['02_00', 'F1']),
        ('[[02_00, F1], [3]]', [['02_00', 'F1'], [3]]),
        ("{'type':'GN','num_groups':4}", {'type': 'GN', 'num_groups': 4}),
        (
            "{'type': 'Pretrained', 'checkpoint': 'run_1_2.pth'}",
            {'type': 'Pretrained', 'checkpoint': 'run_1_2.pth'},
        ),
    ],
)
def test_an_options_value_is_read_as_it_is_meant(text, value):
    parsed = parse_options([f'key={text}'])['key']
    assert parsed == value
    assert type(parsed) is type(value)


def test_options_are_read_each_for_itself():
    assert parse_options(['max_iters=5', 'model.backbone.with_cp=True']) == {
        'max_iters': 5,
        'model.backbone.with_cp': True,
    }


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('max_iters', '\'max_iters\': write it as KEY=VALUE, without blanks around the "="'),
        ('=5', "'=5': write it as KEY=VALUE"),
        ('a=[1,2', "'a=[1,2': brackets or quotes do not close"),
        ('a=1,2]', "'a=1,2]': brackets or quotes do not close"),
        ('a={type:BN}', "'a={type:BN}': write a dict as {'type': 'BN'}, with quotes"),
        ('a={type:BN,b:2}', "'a={type:BN,b:2}': write a dict as {'type': 'BN'}, with quotes"),
    ],
)
def test_an_option_that_cannot_be_read_is_shown(option, message):
    with pytest.raises(InputError, match=re.escape(f'--cfg-options {message}')):
        parse_options([option])


# --- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('typo', 'meant'),
    [
        ('modle.x', 'model.x'),
        ('base_channel', 'base_channels'),
        ('max_iter', 'max_iters'),
        ('train_cfg.max_iter', 'train_cfg.max_iters'),
        ('optim_wrapper.optimizer.weight_deca', 'optim_wrapper.optimizer.weight_decay'),
        # AdamW has no momentum; of its parameters this one is spelt most alike.
        ('optim_wrapper.optimizer.momentu', 'optim_wrapper.optimizer.maximize'),
        ('optim_wrapper.clip_gard.max_norm', 'optim_wrapper.clip_grad.max_norm'),
        ('model.backbone.base_channel', 'model.backbone.base_channels'),
        ('model.decode_head.loss_decode.los_weight', 'model.decode_head.loss_decode.loss_weight'),
        ('model.data_preprocessor.size_divsor', 'model.data_preprocessor.size_divisor'),
        ('model.test_cfg.scale', 'model.test_cfg.scales'),
        ('model.test_cfg.pass', 'model.test_cfg.passes'),
        ('train_pipeline.0.crop_siz', 'train_pipeline.0.crop_size'),
        ('train_dataloader.dataset.pipeline.0.crop_siz', 'train_dataloader.dataset.pipeline.0.crop_size'),
        ('train_dataloader.dataset.splt', 'train_dataloader.dataset.split'),
        ('train_dataloader.dataset.indicse', 'train_dataloader.dataset.indices'),
        ('train_dataloader.pin_memroy', 'train_dataloader.pin_memory'),
        ('param_scheduler.1.eta_mn', 'param_scheduler.1.eta_min'),
        ('default_hooks.checkpoint.save_bes', 'default_hooks.checkpoint.save_best'),
        ('val_evaluator.ignore_idex', 'val_evaluator.ignore_index'),
        ('randomness.sed', 'randomness.seed'),
    ],
)
def test_a_misspelt_key_is_an_error_that_suggests_the_nearest_one(typo, meant):
    with pytest.raises(
        InputError, match=rf'--cfg-options {typo}: no such key, .* did you mean {re.escape(meant)}\?$'
    ):
        load_config(REFERENCE, {typo: 1})


def test_a_key_below_a_plain_value_or_beyond_a_list_is_refused():
    with pytest.raises(
        InputError, match='train_cfg.max_iters.x: train_cfg.max_iters is 20000 and has no keys'
    ):
        load_config(REFERENCE, {'train_cfg.max_iters.x': 1})
    with pytest.raises(
        InputError, match=r'param_scheduler\.5\.end: no such key, .* did you mean param_scheduler\.'
    ):
        load_config(REFERENCE, {'param_scheduler.5.end': 1})


def test_keys_and_parameters_that_exist_are_set():
    options = {
        'model.backbone.norm_cfg.type': 'BN',
        'optim_wrapper.optimizer.betas': (0.8, 0.9),
        'optim_wrapper.clip_grad.max_norm': 1.5,
        'train_dataloader.pin_memory': True,
        'train_dataloader.dataset.indices': 4,
        'val_evaluator.ignore_index': 9,
        'param_scheduler.0.end': 7,
        'load_from': 'a.pth',
        'log_level': 'DEBUG',
        'randomness': {'seed': 3},
    }
    config = load_config(REFERENCE, options)
    assert config.model.backbone.norm_cfg == {'type': 'BN'}
    assert config.optim_wrapper.optimizer.betas == (0.8, 0.9)
    assert config.optim_wrapper.clip_grad == {'max_norm': 1.5}
    assert config.train_dataloader.pin_memory is True
    assert config.train_dataloader.dataset.indices == 4
    assert config.val_evaluator.ignore_index == 9
    assert config.param_scheduler[0].end == 7
    assert (config.load_from, config.log_level) == ('a.pth', 'DEBUG')
    # A dict is merged: the other keys stay.
    assert config.randomness == dict(seed=3, deterministic=False, diff_rank_seed=False)


def test_a_config_that_has_not_all_keys_of_test_cfg_takes_them(tmp_path):
    # As runs of earlier versions saved them.
    text = "model = dict(type={!r}, test_cfg=dict(mode='whole'))\n"
    ours = write(tmp_path / 'ours.py', text.format('LyftSegmentor'))
    config = load_config(str(ours), {'model.test_cfg.scales': [0.5, 1.0], 'model.test_cfg.flip': True})
    assert config.model.test_cfg == dict(mode='whole', scales=[0.5, 1.0], flip=True)
    theirs = write(tmp_path / 'theirs.py', text.format('EncoderDecoder'))
    with pytest.raises(InputError, match=r'model\.test_cfg\.scales: no such key'):
        load_config(str(theirs), {'model.test_cfg.scales': [0.5, 1.0]})
    with pytest.raises(InputError, match=r'a\.b\.test_cfg: no such key'):
        load_config(str(theirs), {'a.b.test_cfg': 1})


@pytest.mark.parametrize('config_path', [REFERENCE, DEMO])
def test_a_pipeline_step_set_by_number_reaches_the_loader_beside_knobs(config_path):
    options = {'train_pipeline.0.cat_max_ratio': 0.5, 'train_pipeline.1.on_device': True, 'batch_size': 3}
    knob, direct = {'crop_size': (64, 96)}, {'train_pipeline.0.crop_size': (64, 96)}
    for options_of_crop in (knob, direct):
        config = load_config(config_path, options | options_of_crop)
        crop, colour, _ = config.train_dataloader.dataset.pipeline
        # What the option does not name stays.
        kept = dict(scale=config.image_scale_wh, ratio_range=config.scale_range)
        assert crop == dict(type='LyftCropFirst', crop_size=(64, 96), cat_max_ratio=0.5, **kept)
        assert colour.on_device
        assert config.train_dataloader.batch_size == 3
        assert config.val_dataloader == load_config(config_path).val_dataloader


def test_a_list_taken_whole_is_not_changed_again_by_the_leaf():
    steps = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    config = load_config(DEMO, {'train_pipeline': steps})
    assert config.train_dataloader.dataset.pipeline == steps


# --- files -------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return path


def test_a_knob_is_set_where_it_stands_whatever_surrounds_it(tmp_path):
    write(
        tmp_path / 'bases' / 'one.py',
        "a = 1  # ä\nname = 'größe'; b = 'two'\ntrain_cfg = dict(x=a, y=b, z=name)\n",
    )
    leaf = write(
        tmp_path / 'leaf.py',
        "_base_ = './bases/one.py'\na = (\n 3 +\n 4\n)\nval_cfg = dict(x=a, y=_base_.b)\nval_cfg['z'] = a\n",
    )
    config = load_config(str(leaf))
    assert (config.train_cfg, config.val_cfg) == (
        dict(x=1, y='two', z='größe'),
        dict(x=7, y='two', z=7),
    )
    config = load_config(str(leaf), {'a': 10, 'b': "it's", 'name': 'ß'})
    assert config.train_cfg == dict(x=10, y="it's", z='ß')
    assert config.val_cfg == dict(x=10, y="it's", z=10)
    # The files stay as they are, and the config says which one it is.
    assert 'a = 1' in (tmp_path / 'bases' / 'one.py').read_text(encoding='utf-8')
    assert config.filename == str(leaf)


def test_a_knob_from_which_nothing_derives_is_refused(tmp_path):
    leaf = write(tmp_path / 'leaf.py', 'steps = 5\ntrain_cfg = dict(max_iters=7)\n')
    with pytest.raises(
        InputError, match=re.escape(f'--cfg-options steps=6: nothing in {leaf} derives from steps')
    ):
        load_config(str(leaf), {'steps': 6})
    # Its own value is no change, so no mistake either.
    assert load_config(str(leaf), {'steps': 5}).train_cfg.max_iters == 7


def test_a_config_is_found_by_path_or_by_name_in_the_package():
    assert find_config(REFERENCE) == Path(REFERENCE)
    packaged = Path('mmseg_unet_lyft') / '.mim' / 'configs' / 'unet_lyft.py'
    for name in ('unet_lyft.py', 'unet_lyft'):
        assert find_config(name).parts[-4:] == packaged.parts
    assert Config.fromfile(find_config('unet_lyft')).to_dict() == Config.fromfile(REFERENCE).to_dict()


def test_a_config_that_is_nowhere_lists_the_packages_own():
    with pytest.raises(
        InputError, match=r'unet_lift\.py: no such config file here, nor in .* unet_lyft_demo\.py'
    ):
        load_config('unet_lift.py')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = 1\nb = (\n', ': line 2: '),
        ("_base_ = ['nowhere.py']\n", ': its base {folder}/nowhere.py does not exist'),
        ('a = undefined\n', ": NameError: name 'undefined' is not defined"),
        ("a = dict(x=1)['y']\n", ": KeyError: 'y'"),
        ("custom_imports = dict(imports=['nonexistent_module'])\n", ': ImportError: '),
    ],
)
def test_a_broken_config_is_named_with_what_is_wrong(tmp_path, text, message):
    leaf = write(tmp_path / 'leaf.py', text)
    with pytest.raises(InputError, match=re.escape(f'{leaf}{message.format(folder=tmp_path)}')):
        load_config(str(leaf))


# --- where the data are ------------------------------------------------------------------------------------


def roots(config: Config) -> set[str]:
    return {config[loader].dataset.data_root for loader in LOADERS}


def test_the_data_root_is_the_configs_else_the_environments_else_the_options(monkeypatch):
    monkeypatch.delenv('LYFT_DATA_ROOT', raising=False)
    assert roots(load_config(REFERENCE)) == {'data/lyft'}
    monkeypatch.setenv('LYFT_DATA_ROOT', '/data/my frames')
    assert roots(load_config(REFERENCE)) == roots(Config.fromfile(REFERENCE)) == {'/data/my frames'}
    assert roots(load_config(REFERENCE, {'max_iters': 5})) == {'/data/my frames'}
    assert roots(load_config(REFERENCE, {'data_root': 'other'})) == {'other'}


def test_the_demo_trains_on_its_drawn_scenes_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv('LYFT_DATA_ROOT', raising=False)
    assert roots(load_config(DEMO)) == {'data/drawn'}
    monkeypatch.setenv('LYFT_DATA_ROOT', '/data/kaggle')
    assert roots(load_config(DEMO)) == {'/data/kaggle'}
    assert roots(load_config(DEMO, {'data_root': 'other'})) == {'other'}


@pytest.mark.parametrize('option', ['data_root=/data/a,b', 'data_root=2018', 'model.pretrained=[a]'])
def test_a_path_is_text_whatever_it_looks_like(option):
    key, _, text = option.partition('=')
    assert parse_options([option]) == {key: text}


def test_a_whole_number_may_be_written_as_a_power_of_ten():
    assert load_config('unet_lyft.py', parse_options(['max_iters=1e3'])).train_cfg.max_iters == 1000


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('max_iters=1.5', r'max_iters=1\.5: give a whole number, as 20000 is'),
        ('max_iters=many', "max_iters='many': give a whole number, as 20000 is"),
        ('learning_rate=fast', r"learning_rate='fast': give a number, as 0\.003 is"),
        ('crop_size=64', r'crop_size=64: give two numbers in brackets, as \(384, 512\) is'),
        ('crop_size=(64,64,64)', r'crop_size=\(64, 64, 64\): give two numbers in brackets'),
        (
            'scale_range=(a,b)',
            r"scale_range=\('a', 'b'\): give two numbers in brackets, as \(0\.5, 2\.0\) is",
        ),
        ('test_scales=2', r'test_scales=2: give numbers in brackets, as \(1\.0,\) is'),
    ],
)
def test_a_number_is_asked_for_where_one_stands(option, message):
    with pytest.raises(InputError, match=message):
        load_config('unet_lyft.py', parse_options([option]))


def test_a_config_without_data_says_so_of_the_option_for_them(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("model = dict(type='EncoderDecoder')\n")
    with pytest.raises(InputError, match=r'mine\.py: --data-root: this config names no data; .* by _base_$'):
        load_config(str(path), dict(data_root='frames'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("_base_ = ['a' + '.py']\n", 'line 1: _base_ is computed; write it as a list of strings'),
        ('x = [1][2]\n', 'IndexError: list index out of range'),
        ("x = int('a')\n", 'ValueError: invalid literal'),
        ('x = 1 / 0\n', 'ZeroDivisionError: division by zero'),
    ],
)
def test_what_a_config_raises_is_said_with_its_name(tmp_path, text, message):
    (tmp_path / 'broken.py').write_text(text)
    with pytest.raises(InputError, match=f'broken.py: {message}'):
        load_config(str(tmp_path / 'broken.py'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('x = 1\n'.encode('utf-16'), "is no Python source ('utf-8' codec can't decode byte 0xff"),
        (b'x = "\xe4"\n', "is no Python source ('utf-8' codec can't decode byte 0xe4"),
        (b'x = 1\x00\n', 'source code string cannot contain null bytes'),
        (b'x = undefined\n', "NameError: name 'undefined' is not defined"),
    ],
)
def test_a_broken_base_is_named_and_not_the_config_that_needs_it(tmp_path, content, message):
    (tmp_path / 'base.py').write_bytes(content)
    write(tmp_path / 'between.py', "_base_ = ['base.py']\n")
    leaf = write(tmp_path / 'leaf.py', "_base_ = ['between.py']\ny = _base_.x\n")
    with pytest.raises(InputError, match=f'^{re.escape(str(tmp_path / "base.py"))}: .*{re.escape(message)}'):
        load_config(str(leaf))


def test_a_config_that_misses_something_in_a_base_is_named_itself(tmp_path):
    write(tmp_path / 'base.py', 'x = 1\n')
    leaf = write(tmp_path / 'leaf.py', "_base_ = ['base.py']\ny = _base_.z\n")
    with pytest.raises(InputError, match=re.escape(f"{leaf}: AttributeError: 'ConfigDict' object has no")):
        load_config(str(leaf))


def test_an_unknown_key_is_said_with_the_config(tmp_path):
    leaf = write(tmp_path / 'leaf.py', 'x = 1\n')
    with pytest.raises(InputError, match=re.escape(f'{leaf}: --cfg-options max_iters: no such key')):
        load_config(str(leaf), dict(max_iters=3))
