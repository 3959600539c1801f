"""Tests of the rooms: which imports are allowed, and what importing mmasr needs and does."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import run_python
from helpers import ROOT, SHAPES_CONFIG

OPENMMLAB = {'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'}
NOT_TORCH = {*OPENMMLAB, 'torchvision', 'timm', 'rich', 'matplotlib', 'pycocotools', 'cv2'}
# room -> the rooms that it may import; docs/architecture.md draws them.
ROOMS = {
    'attention': set(),
    'core': {'attention'},
    'convolutions': {'attention', 'core'},
    'stripes': {'attention', 'core'},
    'openmmlab': {'attention', 'core', 'convolutions', 'stripes'},
    'untrusted': {'attention', 'core', 'convolutions', 'stripes', 'openmmlab'},
    'deploy': {'attention', 'core', 'convolutions', 'stripes', 'openmmlab', 'untrusted'},
    'experiments': {'attention', 'core', 'convolutions', 'stripes', 'openmmlab', 'untrusted', 'deploy'},
}
TORCH_ONLY = ('attention', 'core', 'convolutions')
# The files next to the rooms. Those that need torch only may import the first one.
FILES = ('errors', 'files', 'plots', 'processes', 'timing', 'registry', 'packaged', '__main__')
ALLOWED_FILES = {room: FILES[:1] if room in TORCH_ONLY else FILES[:6] for room in ROOMS}
# These files of the stripes observe any network; pictures, pages and the hook need more packages.
OBSERVING = [
    *('stripes', 'stripes.observer', 'stripes.modules', 'stripes.statistics'),
    *('stripes.trace', 'stripes.gates', 'stripes.placement', 'stripes.distill', 'stripes.fold_attention'),
]


def find_modules(package: Path) -> dict[str, Path]:
    """Return the modules of a package and its subpackages: name -> file."""
    found = {}
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package.parent).with_suffix('').parts
        if '.mim' not in parts:  # links to configs and tools
            found['.'.join(parts).removesuffix('.__init__')] = path
    return found


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ('TYPE_CHECKING', 'typing.TYPE_CHECKING')


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield all imports in a syntax tree, in functions too, except those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_for_type_checking(child):
            for other in child.orelse:
                yield from import_statements(ast.Module([other], []))
        else:
            yield from import_statements(child)


def imported_modules(name: str, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the same package that a module imports.

    They include the packages that contain these modules but not the importing one, since Python imports them
    as well.
    """
    path, found = modules[name], set()
    package = name.split('.') if path.stem == '__init__' else name.split('.')[:-1]
    for statement in import_statements(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            start = package[: len(package) - statement.level + 1] if statement.level else []
            source = '.'.join([*start, *filter(None, [statement.module])])
            names = [f'{source}.{alias.name}' for alias in statement.names]
            names = [one if one in modules else source for one in names]  # a module, or a name in one
        found.update(names)
        parts = [one.split('.') for one in names]
        outer = {'.'.join(part[:length]) for part in parts for length in range(1, len(part))}
        found.update(one for one in outer if not f'{name}.'.startswith(f'{one}.'))
    return found & modules.keys()


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return a cycle of a graph, node -> successors, as a list of nodes; empty if there is none."""
    finished = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in finished:
            return []
        cycles = (search(successor, [*path, node]) for successor in sorted(graph.get(node, ())))
        cycle = next(filter(None, cycles), [])
        finished.add(node)
        return cycle

    return next(filter(None, (search(node, []) for node in graph)), [])


MODULES = find_modules(ROOT / 'mmasr')
GRAPH = {name: imported_modules(name, MODULES) for name in MODULES}


def room_of(module: str) -> str:
    """Return the room of a module, or the name of a file next to the rooms."""
    return module.partition('.')[2].partition('.')[0]


def test_the_table_lists_all_rooms_and_files():
    assert {room_of(name) for name in MODULES} == {'', *ROOMS, *FILES}


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_has_no_circular_imports(room):
    assert find_cycle({name: found for name, found in GRAPH.items() if room_of(name) == room}) == []


def test_the_package_has_no_circular_imports():
    assert find_cycle(GRAPH) == []


@pytest.mark.parametrize('room', ROOMS)
def test_no_import_statement_of_a_room_names_a_forbidden_one(room):
    """Imports in functions count, too."""
    allowed = {room, *ROOMS[room], *ALLOWED_FILES[room]}
    imports = {(name, other) for name, found in GRAPH.items() if room_of(name) == room for other in found}
    assert {(name, other) for name, other in imports if room_of(other) not in allowed} == set()


PACKAGE = {
    '__init__': 'from .a import first',
    'a': 'import os\nif TYPE_CHECKING:\n    from .b import B\ndef first():\n    pass',
    'b': 'from . import a\nfrom .inner import c',
    'inner/__init__': '',
    'inner/c': 'class C:\n    def method(self):\n        from ..b import B\n        from ... import outside',
    'd': 'import package.a\nfrom package.inner.c import C',
}


@pytest.fixture
def package(tmp_path):
    """A package with a cycle of two modules, one of which imports the other in a function."""
    for name, code in PACKAGE.items():
        path = tmp_path / 'package' / f'{name}.py'
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(code)
    return find_modules(tmp_path / 'package')


def test_imports_are_read_from_the_code(package):
    assert {name: imported_modules(name, package) for name in package} == {
        'package': {'package.a'},
        'package.a': set(),
        'package.b': {'package.a', 'package.inner', 'package.inner.c'},
        'package.d': {'package.a', 'package.inner', 'package.inner.c'},
        'package.inner': set(),
        'package.inner.c': {'package.b'},
    }


def test_a_cycle_is_found(package):
    graph = {name: imported_modules(name, package) for name in package}
    assert find_cycle(graph) == ['package.b', 'package.inner.c']
    del graph['package.b']
    assert find_cycle(graph) == []


# Imports modules while others are blocked, and without mmasr/__init__.py, which would import more rooms.
IMPORT = """
import importlib, sys, types
root, names, blocked = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
sys.modules.update(dict.fromkeys(blocked))
mmasr = sys.modules['mmasr'] = types.ModuleType('mmasr')
mmasr.__path__ = [f'{root}/mmasr']
for name in names:
    importlib.import_module(name)
"""


def run(code: str, *args, **options) -> None:
    result = run_python(code, *args, **options)
    assert result.returncode == 0, result.stderr


def import_modules(room: str, names: list[str], without: set[str]) -> None:
    """Import modules of a room where its forbidden rooms and files, and some packages, are missing."""
    allowed = {room, *ROOMS[room], *ALLOWED_FILES[room]}
    blocked = [f'mmasr.{other}' for other in (*ROOMS, *FILES) if other not in allowed]
    run(IMPORT, ROOT, ' '.join(names), ' '.join(blocked), without=without)


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_can_be_imported_without_the_rooms_that_it_must_not_use(room):
    names = [name for name in MODULES if room_of(name) == room]
    # MMSegmentation is an extra that only one file needs.
    names = [name for name in names if name != 'mmasr.openmmlab.backbones.segmentation']
    import_modules(room, names, NOT_TORCH if room in TORCH_ONLY else {'mmseg'})


def test_observing_a_network_needs_torch_only():
    import_modules('stripes', [f'mmasr.{name}' for name in OBSERVING], NOT_TORCH)


CORE = """
import torch
import mmasr
import mmasr.stripes
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1))
x = torch.randn(2, 3, 8, 8)
mmasr.attach(model, dict(type='SE'), sites=['1'])
mmasr.attach(model, dict(type='ACNet'), sites=['2'])
model.eval()
expected = model(x)
torch.testing.assert_close(mmasr.fold(model)(x), expected)
with mmasr.stripes.Observer(torch.nn.Sequential(mmasr.SE(3))) as observer:
    observer.modules['0'](x)
assert observer.stripes['0'].v.count == 2
"""


def test_attach_fold_and_observers_work_with_torch_alone():
    run(CORE, without=NOT_TORCH)


REGISTERED = """
import mmengine.registry, sys
import mmasr
# MMDetection is imported only when a config asks for one of its types, since importing it takes long.
assert not [name for name in ('mmdet', 'mmcv', 'mmpretrain', 'torchvision') if name in sys.modules]
assert mmengine.registry.MODELS.get('mmasr.ASRResNet').__name__ == 'ASRResNet'
assert mmengine.registry.MODELS.get('mmasr.SE') is not None
"""


def test_importing_mmasr_registers_its_types_and_imports_nothing_slow():
    subprocess.run([sys.executable, '-c', REGISTERED], check=True)  # a fresh process has imported nothing


NOTHING_HIDDEN = """
import mmengine.registry, torch
from torch.nn.modules import module
from torch.optim import optimizer
tables = {**vars(module), **vars(optimizer)}
tables = {name: table for name, table in tables.items() if name.startswith('_global')}
before = {name: len(table) for name, table in tables.items() if hasattr(table, '__len__')}
registries = vars(mmengine.registry).items()
registries = {name: r for name, r in registries if isinstance(r, mmengine.registry.Registry)}
own = {name: dict(registry.module_dict) for name, registry in registries.items()}
import mmasr
changed = {name for name in before if len(tables[name]) != before[name]}
assert changed == {'_global_module_registration_hooks'}, changed
for name, entries in own.items():  # mmcv and mmdet look up their own types without a scope
    assert dict(registries[name].module_dict) == entries, name
"""


def test_importing_mmasr_changes_no_more_of_the_process_than_its_docstring_says():
    run(NOTHING_HIDDEN)


WITHOUT_MMPRETRAIN = """
import runpy, sys
tools, config = sys.argv[1:]
schedule = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
options = ['--cfg-options', *schedule]
for tool, *args in (
    ('train', config, '--work-dir', 'no_mmpretrain', *options),
    ('test', config, 'no_mmpretrain/epoch_1.pth', '--work-dir', 'no_mmpretrain'),
    ('reparam', 'no_mmpretrain/epoch_1.pth'),
):
    sys.argv = [tool, *args]
    runpy.run_path(f'{tools}/{tool}.py', run_name='__main__')
"""


def test_a_detector_trains_and_deploys_without_mmpretrain(shapes):
    run(WITHOUT_MMPRETRAIN, ROOT / 'tools', SHAPES_CONFIG, cwd=shapes, without=['mmpretrain'])
    assert (shapes / 'no_mmpretrain/epoch_1_deploy.pth').is_file()


BROKEN = """
import sys
sys.path.insert(0, '')
import mmengine.registry, mmasr
mmengine.registry.MODELS.build(dict(type='mmasr.ASRResNet', depth=18, asr=dict(attention=dict(type='SE'))))
try:
    mmengine.registry.MODELS.build(dict(type='mmasr.ASRVGG', depth=11, norm_cfg=dict(type='BN')))
except ImportError as error:
    assert 'from another version' in str(error)
else:
    raise AssertionError
"""


def test_a_broken_mmpretrain_affects_only_the_types_that_need_it(tmp_path):
    (tmp_path / 'mmpretrain.py').write_text("raise ImportError('cannot import a name from another version')")
    run(BROKEN, cwd=tmp_path)


CLASSIFIER = """
import sys
sys.path.append(sys.argv[1])
import torch
from helpers import classifier
from mmengine.registry import MODELS, DefaultScope
from mmasr.deploy.reparameterize import reparameterize
asr = dict(attention=dict(type='SE'))
vgg = dict(type='mmasr.ASRVGG', depth=11, norm_cfg=dict(type='BN'), asr=asr)
resnet = dict(type='mmasr.ASRBackbone', backbone=dict(type='ResNet', depth=18, out_indices=(3,)), asr=asr)
for name, backbone in dict(vgg=vgg, resnet=resnet).items():
    config = classifier(backbone, 512)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save(dict(meta=dict(cfg=config.pretty_text), state_dict=model.state_dict()), f'{name}.pth')
    del model
    assert reparameterize(f'{name}.pth').config.is_file()
"""


def test_a_classifier_deploys_without_pycocotools(tmp_path):
    run(CLASSIFIER, ROOT / 'tests', cwd=tmp_path, without=['pycocotools'])
