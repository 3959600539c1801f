"""Every code block of the pages works, without downloads, COCO, a GPU or a long training.

- Python runs. The blocks of a page share a namespace, which starts with a small network and inputs.
- A block that only assigns is a config. It is loaded, and its model is built.
- bash runs a block with stubs in place of the programs. The tools parse the arguments of every command. The
  configs that it names are loaded with its options, and built if these change the model. tests/configs builds
  all configs without options.
- Blocks of other languages are output or data.
"""

import ast
import copy
import functools
import re
import runpy
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT, SHAPES_CONFIG, save_network
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser
from torch import nn

import mmasr
from mmasr.deploy.export import export
from mmasr.deploy.reparameterize import reparameterize
from mmasr.openmmlab.building import build_model
from mmasr.stripes import VALUES

PAGES = [
    *sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]),
    *(ROOT / 'configs/README.md', ROOT / 'tools/README.md'),
]
LANGUAGES = {'python', 'bash', 'text', 'bibtex', 'yaml', 'json'}
#: Pages whose Python is only compiled.
COMPILED = {
    'docs/anywhere.md': 'tests/core/test_other_libraries.py runs it',
    'docs/remove-attention-onnx.md': 'it needs onnx2torch and the weights of PP-OCR',
}
#: Downloads and GPUs, and what replaces them.
REPLACED = {
    "weights='DEFAULT'": 'weights=None',
    'pretrained=True': 'pretrained=False',
    "device='cuda'": "device='cpu'",
}
#: Programs of others, whose arguments are not checked.
PROGRAMS = ('cp', 'curl', 'git', 'mkdir')
#: The config of pages that use `my_config.py` without showing one, and the base of snippets without one.
DEFAULT_CONFIG = 'mask_rcnn_r50_asr_se.py'
#: Loads a config once; loading takes longer than anything else here.
from_file = functools.cache(Config.fromfile)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """Provide a folder with the checkpoints and images that the pages name, with small networks."""
    folder = tmp_path_factory.mktemp('files')
    config = Config.fromfile(SHAPES_CONFIG)
    config.model.backbone.base_channels = 8
    config.model.neck.in_channels = [8, 16, 32, 64]
    save_network(folder / 'epoch_12.pth', config)
    for name in ('fruits', 'my_config'):
        Path(folder, 'work_dirs', name).mkdir(parents=True)
    reparameterize(folder / 'epoch_12.pth', out=folder / 'work_dirs/fruits/epoch_12_deploy.pth')
    export(folder / 'work_dirs/fruits/epoch_12_deploy.pth', out=folder / 'epoch_12_deploy.onnx')
    for name in ('photo.jpg', 'street.jpg'):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
    torch.save(torchvision.models.resnet18().state_dict(), folder / 'folded.pth')

    deployed = folder / 'work_dirs/my_config/iter_40000_deploy.pth'
    config = Config.fromfile(ROOT / 'configs/shapes/fpn_r18.py')
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    save_network(deployed, config)
    config.dump(deployed.with_suffix('.py'))
    return folder


@pytest.fixture
def workplace(files, tmp_path, monkeypatch):
    """Change to a folder with these files, all configs, and stubs that record commands."""
    folder = tmp_path / 'workplace'
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    Path('configs').mkdir()
    for path in (ROOT / 'configs').iterdir():
        Path('configs', path.name).symlink_to(path)
    stub = """printf '%s\\x1f' "${0##*/}" "$@" >> $COMMANDS; echo >> $COMMANDS"""
    scripts = [f'tools/{path.name}' for path in ROOT.glob('tools/*.sh')]
    programs = [f'bin/{name}' for name in ('make', 'mmasr', 'pip', 'python', 'torchrun', *PROGRAMS)]
    for name in (*scripts, *programs, '.venv/bin/python'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f'#!{shutil.which("bash")}\n{stub}\n')
        Path(name).chmod(0o755)
    return folder


def namespace() -> dict:
    """Return the names that a page may use without defining them."""
    block = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), se=mmasr.SE(8)))
    model = nn.Sequential(
        OrderedDict(layer1=nn.Sequential(block), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    )
    images = torch.randn(200, 3, 16, 16)
    return {
        'mmasr': mmasr,
        'torch': torch,
        'torchvision': torchvision,
        'model': model,
        'network': torchvision.models.resnet18(),
        'images': images,
        'batches': images.split(20),
        'train': lambda model: None,
    }


def run_python(example: Example) -> None:
    """Run Python, or load a config."""
    source = example.parsed
    for original, replacement in REPLACED.items():
        source = source.replace(original, replacement)
    code = compile(source, f'{example.path}:{example.line}', 'exec')
    if name_of(Path(example.path)) in COMPILED:
        return
    if all(isinstance(node, ast.Assign) for node in ast.parse(source).body):
        load_config(source)
    else:
        with mock.patch.dict(VALUES):  # pages register classes
            exec(code, example.namespace)


def load_config(source: str) -> None:
    """Load a config and build its parts. One without a base continues the first config of its page."""
    first = Path('configs/my_config.py')
    own = re.search(r"_base_ = '(my_\w+\.py)'", source)  # a config of the reader
    if own and not Path('configs', own[1]).exists():
        Path('configs', own[1]).symlink_to(ROOT / 'configs/mask_rcnn_r50.py')
    path = first if '_base_ =' in source and not first.exists() else first.with_name('snippet.py')
    base = first.name if first.exists() else DEFAULT_CONFIG
    path.write_text(source if '_base_ =' in source else f'_base_ = {base!r}\n{source}')
    config = Config.fromfile(path)
    build_model(config)
    for hook in config.get('custom_hooks', []):
        HOOKS.build(hook)
    assert OPTIM_WRAPPERS.get(config.optim_wrapper.get('type', 'OptimWrapper'))
    backbone = config.get('backbone')
    if 'plugins' in config:
        backbone = {'type': 'mmasr.ASRResNet', 'depth': 50, 'plugins': config.plugins}
    if backbone:
        MODELS.build(backbone)


def run_bash(example: Example) -> None:
    """Run commands with stubs in place of the programs, and check what they were called with."""
    log = Path('commands')
    log.write_text('')
    script = f'cd() {{ :; }}\n{example.parsed}'
    environment = {'PATH': str(Path('bin').absolute()), 'COMMANDS': str(log.absolute())}
    bash = shutil.which('bash')
    result = subprocess.run(
        [bash, '-euc', script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    commands = [line.split('\x1f')[:-1] for line in log.read_text().splitlines()]
    assert commands
    for program, *arguments in commands:
        check_command(program, arguments)


def check_command(program: str, arguments: list[str]) -> None:
    """Check a command.

    Args:
        program (str): The program, without its folder.
        arguments (list[str]): Its arguments.
    """
    if program == 'make':
        targets = [argument for argument in arguments if '=' not in argument]
        makefile = (ROOT / 'Makefile').read_text()
        assert [target for target in targets if f'\n{target}:' not in makefile] == []
    elif program == 'pip':
        extras = ','.join(re.findall(r'(?:mmasr|\.)\[([\w,]+)\]', ' '.join(arguments))).split(',')
        declared = (ROOT / 'pyproject.toml').read_text()
        assert [extra for extra in extras if extra and f'\n{extra} = [' not in declared] == []
    elif arguments[:2] == ['-m', 'pytest']:
        paths = [argument for argument in arguments if argument.startswith('tests/')]
        assert [path for path in paths if not (ROOT / path).exists()] == []
    elif script := re.fullmatch(r'dist_(\w+)\.sh', program):
        gpus = next(place for place, argument in enumerate(arguments) if argument.isdigit())
        check_tool(script[1], arguments[:gpus] + arguments[gpus + 1 :])
    elif program == 'mmasr' or arguments[:2] == ['-m', 'mmasr']:
        tool, *rest = arguments if program == 'mmasr' else arguments[2:]
        if tool != '--help':
            check_tool(tool, rest)
    elif program in ('python', 'torchrun'):
        place = next(i for i, argument in enumerate(arguments) if argument.endswith('.py'))
        assert program == 'torchrun' or place == 0
        if not arguments[place].startswith('mmdeploy/'):
            assert (ROOT / arguments[place]).is_file()
            check_tool(Path(arguments[place]).stem, arguments[place + 1 :])
    else:
        assert program in (*PROGRAMS, 'benchmark_gpu.sh')


def check_tool(tool: str, arguments: list[str]) -> None:
    """Check that a tool accepts arguments, and that the configs among them fit."""
    module = runpy.run_path(str(ROOT / f'tools/{tool}.py'))
    if arguments == ['--help'] or (not arguments and 'parse_args' not in module):
        return
    with mock.patch('sys.argv', [tool, *arguments]):
        args = module['parse_args']()
    configs = getattr(args, 'configs', [getattr(args, 'config', None)])
    settings = getattr(args, 'settings', None) or [getattr(args, 'cfg_options', None) or {}]
    for config in configs:
        if config and tool != 'reparam' and not config.endswith('_deploy.py'):  # written by reparam
            for options in settings:
                changed = copy.deepcopy(find_config(config))
                changed.merge_from_dict(options)
                if any(key.startswith('model.') for key in options):
                    build_model(changed)
    if getattr(args, 'model', None):
        package, name = args.model.split(':')
        assert package == 'torchvision'
        assert name in torchvision.models.list_models()


def find_config(name: str) -> Config:
    """Return a config of the project, or the first config of the page."""
    path = ROOT / re.sub('^mmasr::', 'configs/', name)
    first = Path('configs/my_config.py').absolute()
    if path.is_file():
        return from_file(path)
    # A page may save its config under any name.
    assert first.is_file() or name == 'my_config.py'
    return from_file(first if first.is_file() else ROOT / 'configs' / DEFAULT_CONFIG)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_code_blocks(page, workplace):
    parsers = [CodeBlockParser('python', run_python), CodeBlockParser('bash', run_bash)]
    document = Sybil(parsers, path=str(ROOT)).parse(page)
    document.namespace.update(namespace())
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_every_block_names_its_language(page):
    fences = re.findall(r'^ *```(.*)$', page.read_text(), re.M)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {''}
