"""Test the tool that prints versions."""

import platform
import runpy
from importlib.metadata import version

import mmcv
import torch
from forked import run_python
from helpers import ROOT

import mmasr


def lines_of(printed):
    """Return the lines as name -> description."""
    return {line[:14].strip(): line[14:] for line in printed.splitlines()}


def test_it_prints_the_versions(capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['env'])
    runpy.run_path(str(ROOT / 'tools/env.py'), run_name='__main__')
    found = lines_of(capsys.readouterr().out)
    assert found['python'] == platform.python_version()
    assert found['mmasr'] == mmasr.__version__
    assert found['torch'] == torch.__version__
    assert found['mmcv'].split()[0] == mmcv.__version__
    assert found['timm'] == f'{version("timm")} (timm)'
    assert found['mmcv.ops'].startswith('compiled with ')


def test_without_openmmlab_it_runs_and_says_what_is_missing():
    result = run_python(ROOT / 'mmasr/__main__.py', 'env', without=['mmengine', 'mmcv', 'mmdet'])
    assert result.returncode == 0, result.stderr
    found = lines_of(result.stdout)
    assert found['torch'] == torch.__version__
    assert found['mmcv.ops'].startswith('cannot be imported: ')


def test_missing_packages_are_not_installed():
    env = runpy.run_path(str(ROOT / 'tools/env.py'))
    assert env['describe'](['no-such-package']) == 'not installed'
