"""What importing mmasr needs and does, and what each room of it may need."""

import subprocess
import sys

import pytest
from forked import run_python
from helpers import ROOT, SHAPES_CONFIG

OPENMMLAB = {'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'}
NOT_TORCH = {*OPENMMLAB, 'torchvision', 'timm', 'rich', 'matplotlib', 'pycocotools', 'cv2'}
# room -> the rooms that it may import; docs/architecture.md draws them.
ROOMS = {
    'attention': set(),
    'core': {'attention'},
    'convolutions': {'core', 'attention'},
    'stripes': {'core', 'attention'},
    'openmmlab': {'core', 'attention', 'convolutions'},
    'deploy': {'core', 'attention', 'convolutions', 'openmmlab', 'stripes'},
}
# Of the stripes, the part that any network can be observed with; pictures, pages and the hook need more.
FILES = {'stripes': ['stripes', 'stripes.observer', 'stripes.modules', 'stripes.statistics', 'stripes.mean_fold']}

# Imports a room's files with other rooms blocked, and without mmasr/__init__.py, which would bring others in.
IMPORT = """
import importlib.util, pkgutil, sys, types
root, room, files, blocked = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
sys.modules.update(dict.fromkeys(blocked))
mmasr = sys.modules['mmasr'] = types.ModuleType('mmasr')
mmasr.__path__ = [f'{root}/mmasr']
for name in files or [m.name for m in pkgutil.walk_packages([f'{root}/mmasr/{room}'], f'{room}.')]:
    if name != 'openmmlab.backbones.segmentation' or importlib.util.find_spec('mmseg'):  # an extra that nothing else needs
        importlib.import_module(f'mmasr.{name}')
"""


def run(code: str, *args, **options) -> None:
    result = run_python(code, *args, **options)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_needs_no_other_than_it_may(room):
    blocked = {f'mmasr.{other}' for other in {*ROOMS, 'experiments'} - ROOMS[room] - {room}}
    without = ['mmseg'] if room in ('openmmlab', 'deploy') else NOT_TORCH
    run(IMPORT, ROOT, room, ' '.join(FILES.get(room, [])), ' '.join(blocked), without=without)


CORE = """
import torch
import mmasr
import mmasr.stripes
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 3, padding=1))
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


def test_the_core_works_with_torch_alone():
    run(CORE, without=NOT_TORCH)


REGISTERED = """
import mmengine.registry, sys
import mmasr
# Quick: MMDetection is imported when something of it is asked for.
assert not [name for name in ('mmdet', 'mmcv', 'mmpretrain', 'torchvision') if name in sys.modules]
assert mmengine.registry.MODELS.get('mmasr.ASRResNet').__name__ == 'ASRResNet'
assert mmengine.registry.MODELS.get('mmasr.SE') is not None
"""


def test_it_registers_and_imports_nothing_heavy():
    subprocess.run([sys.executable, '-c', REGISTERED], check=True)  # where nothing is imported yet


NOTHING_HIDDEN = """
import mmengine.registry, torch
from torch.nn.modules import module
from torch.optim import optimizer
tables = {name: table for m in (module, optimizer) for name, table in vars(m).items() if name.startswith('_global')}
before = {name: len(table) for name, table in tables.items() if hasattr(table, '__len__')}
registries = {name: r for name, r in vars(mmengine.registry).items() if isinstance(r, mmengine.registry.Registry)}
own = {name: dict(registry.module_dict) for name, registry in registries.items()}
import mmasr
changed = {name for name in before if len(tables[name]) != before[name]}
assert changed == {'_global_module_registration_hooks'}, changed
for name, entries in own.items():  # what mmcv and mmdet look up by its bare name is theirs
    assert dict(registries[name].module_dict) == entries, name
"""


def test_importing_does_to_the_process_what_it_says_and_no_more():
    run(NOTHING_HIDDEN)


WITHOUT_MMPRETRAIN = """
import runpy, sys
tools, config = sys.argv[1:]
options = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
for tool, *args in (
    ('train', config, '--work-dir', 'no_mmpretrain', *options),
    ('test', config, 'no_mmpretrain/epoch_1.pth', '--work-dir', 'no_mmpretrain'),
    ('reparam', 'no_mmpretrain/epoch_1.pth'),
):
    sys.argv = [tool, *args]
    runpy.run_path(f'{tools}/{tool}.py', run_name='__main__')
"""


def test_a_detector_trains_and_deploys_where_mmpretrain_is_missing(shapes):
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


def test_a_broken_mmpretrain_takes_down_only_what_needs_it(tmp_path):
    (tmp_path / 'mmpretrain.py').write_text("raise ImportError('cannot import a name from another version')")
    run(BROKEN, cwd=tmp_path)


CLASSIFIER = """
import sys
sys.path.append(sys.argv[1])
import torch
from helpers import classifier
from mmengine.registry import MODELS, DefaultScope
from mmasr.reparam import reparameterize
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


def test_a_classifier_deploys_without_what_detectors_need(tmp_path):
    run(CLASSIFIER, ROOT / 'tests', cwd=tmp_path, without=['pycocotools'])
