"""The built package, installed outside the checkout, is complete: library, configs, tools and command."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution

import pytest
from forked import run_python
from helpers import ROOT
from mmengine.config import Config

import mmasr

pytestmark = pytest.mark.xdist_group('package')  # one process, so that it is built only once
CONFIGS = {path.relative_to(ROOT) for path in ROOT.glob('configs/**/*.py')}
PACKAGED = {
    *(str(path) for path in CONFIGS),
    *(f'tools/{path.name}' for path in ROOT.glob('tools/*') if path.suffix in ('.py', '.sh')),
    *(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/**/*.yml')),
    'model-index.yml',
}
CODE = {str(path.relative_to(ROOT)) for kind in ('py', 'html') for path in ROOT.glob(f'mmasr/**/*.{kind}')}


def python(installed, *args, cwd):
    """Run Python with the installed package, outside the checkout; return its output."""
    command, environment = [sys.executable, *map(str, args)], {**os.environ, 'PYTHONPATH': str(installed)}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(installed, *args, cwd):
    """Run the installed command; return its output."""
    return python(installed, '-m', 'mmasr', *args, cwd=cwd)


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    """Build the sdist, and the wheel from it; return their folder."""
    folder = tmp_path_factory.mktemp('dist')
    for name in ('mmasr', 'configs', 'tools'):
        shutil.copytree(
            ROOT / name, folder / 'source' / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__')
        )
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, folder / 'source')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, folder / 'source']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope='module')
def installed(dist):
    """Install the wheel alone; return its folder."""
    (wheel,) = dist.glob('*.whl')
    command = [
        sys.executable,
        '-m',
        'pip',
        'install',
        '--quiet',
        '--no-deps',
        '--target',
        dist / 'installed',
        wheel,
    ]
    subprocess.run(command, check=True)
    imported = python(dist / 'installed', '-c', 'import mmasr; print(mmasr.__file__)', cwd=dist)
    assert imported.strip() == str(dist / 'installed/mmasr/__init__.py')  # not the checkout's
    return dist / 'installed'


def test_the_wheel_contains_the_right_files(dist):
    (wheel,) = dist.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if '.dist-info/' not in name} == CODE | {
        f'mmasr/.mim/{name}' for name in PACKAGED
    }
    assert wheel.name == f'mmasr-{mmasr.__version__}-py3-none-any.whl'


def test_the_sdist_contains_the_right_files(dist):
    (sdist,) = dist.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {member.name.partition('/')[2] for member in archive if member.isfile()}
    extra = {'PKG-INFO', 'README.md', 'LICENSE', 'pyproject.toml', 'setup.cfg'}
    assert {n for n in names if '.egg-info/' not in n} == CODE | {
        f'mmasr/.mim/{name}' for name in PACKAGED
    } | extra


def test_the_command_is_installed(installed):
    (info,) = installed.glob('*.dist-info')
    (command,) = Distribution.at(info).entry_points
    assert (command.name, command.value) == ('mmasr', 'mmasr.__main__:main')
    assert (installed / 'bin/mmasr').is_file()


def test_it_trains_evaluates_and_deploys_without_a_checkout(installed, tmp_path):
    run(installed, 'shapes', 'data/shapes', '--train', 8, '--val', 2, cwd=tmp_path)
    settings = (
        'train_cfg = dict(max_epochs=1, val_interval=1)\ndefault_hooks = dict(checkpoint=dict(interval=1))\n'
    )
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmasr::shapes/mask_rcnn_r18_asr_se.py'\n{settings}")
    run(installed, 'train', 'mine.py', cwd=tmp_path)
    printed = run(installed, 'reparam', 'work_dirs/mine/epoch_1.pth', cwd=tmp_path)
    assert 'wrote work_dirs/mine/epoch_1_deploy.pth' in printed
    deployed = [f'work_dirs/mine/epoch_1_deploy.{suffix}' for suffix in ('py', 'pth')]
    assert 'coco/segm_mAP' in run(installed, 'test', *deployed, cwd=tmp_path)
    assert Config.fromfile(tmp_path / deployed[0]).model.backbone.type == 'mmdet.ResNet'


def test_the_help_lists_all_tools(installed, tmp_path):
    printed = run(installed, '--help', cwd=tmp_path)
    for tool in (
        'train',
        'test',
        'reparam',
        'export',
        'stripes',
        'convert',
        'benchmark',
        'sweep',
        'removal',
        'quantization',
        'style_transfer',
        'shapes',
        'digits',
        'env',
    ):
        assert f'  {tool} ' in printed
    assert run(installed, '--version', cwd=tmp_path) == f'mmasr {mmasr.__version__}\n'


def test_a_tool_shows_its_name_and_finds_the_configs_of_the_package():
    usage, missing = (
        run_python(ROOT / 'mmasr/__main__.py', 'train', given) for given in ('--help', 'mmasr::none.py')
    )
    assert usage.stdout.startswith('usage: mmasr train ')
    assert missing.stderr.endswith('.mim/configs/none.py: no such config\n')


def test_an_unknown_tool_is_an_error():
    result = run_python(ROOT / 'mmasr/__main__.py', 'trian')
    assert result.returncode == 1
    assert result.stderr.startswith('error: mmasr trian: no such tool; choose from benchmark, ')


def test_without_openmmlab_the_error_says_what_to_install():
    result = run_python(ROOT / 'mmasr/__main__.py', 'train', 'mine.py', without=['mmengine'])
    assert result.returncode == 1
    assert 'error: mmasr train needs OpenMMLab: install the extra openmmlab of mmasr (' in result.stderr


@pytest.mark.parametrize('name', ['mask_rcnn_r50_asr_se.py', 'cifar100/resnet164_asr_se.py'])
def test_a_config_can_inherit_from_a_config_of_the_package(name, tmp_path):
    (tmp_path / 'mine.py').write_text(f'_base_ = {"mmasr::" + name!r}\n')
    assert (
        Config.fromfile(tmp_path / 'mine.py').to_dict() == Config.fromfile(ROOT / 'configs' / name).to_dict()
    )


def test_an_unknown_config_of_the_package_is_an_error(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmasr::mask_rcnn_r50_asr_sa.py'\n")
    with pytest.raises(FileNotFoundError, match=r'\.mim/configs/mask_rcnn_r50_asr_sa\.py'):
        Config.fromfile(tmp_path / 'mine.py')
