"""Options that several tools share."""

import argparse

import pytest

from mmasr.errors import InputError
from mmasr.openmmlab.arguments import add_arguments, config_from_arguments


def load(folder, *options):
    (folder / 'mine.py').write_text('train_cfg = dict(max_epochs=1)\nsteps = [dict(a=1), dict(a=2)]\n')
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_arguments(parser)
    return config_from_arguments(parser.parse_args([str(folder / 'mine.py'), *options]))


def test_settings_override_the_config(tmp_path):
    config = load(tmp_path, '--cfg-options', 'train_cfg.max_epochs=2', 'steps.1.a=3')
    assert config.train_cfg.max_epochs == 2
    assert config.steps == [{'a': 1}, {'a': 3}]
    assert config.work_dir == 'work_dirs/mine'


@pytest.mark.parametrize('option', ['steps.9.a=1', 'steps.x=1', 'train_cfg.max_epochs.a=1'])
def test_settings_that_do_not_fit_the_config_are_an_error_of_one_line(tmp_path, option):
    with pytest.raises(InputError, match=r'^`cfg_options` do not fit [^\n]*mine\.py: [^\n]*$'):
        load(tmp_path, '--cfg-options', option)
