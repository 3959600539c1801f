"""The public API stays stable: registered names, Python names, options of the tools, examples."""

import doctest
import inspect
import re
import runpy

import pytest
import torch
from helpers import ROOT, classifier
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope

import mmasr
import mmasr.stripes
from mmasr.attention import ATTENTIONS
from mmasr.deploy.reparameterize import reparameterize
from mmasr.registry import MODELS as OURS

# Names that must not change; newer ones are not listed.
REGISTERED = [
    *('ASR', 'SE', 'ECA', 'SRM', 'IE', 'SPA', 'CBAM', 'ASRBackbone', 'WithAttention', 'WithoutAttention'),
    *('ASRResNet', 'ASRResNetV1d', 'ASRResNeXt', 'ASRResNetCIFAR', 'ASRVGG', 'ASRRepVGG', 'ASRShuffleNetV2'),
    *('ASRShuffleNetV2CIFAR', 'ASRMobileNet', 'ASRMobileNetV2', 'ASRVisionTransformer'),
    *('ResNetCIFAR', 'MobileNet', 'ShuffleNetV2CIFAR'),
]


@pytest.mark.parametrize('name', REGISTERED)
def test_every_model_is_registered(name):
    found = MODELS.get(f'mmasr.{name}')
    assert found is OURS.module_dict[name]
    assert inspect.isfunction(found) or issubclass(found, torch.nn.Module)


def test_the_registry_lists_the_files_of_all_models():
    assert set(OURS.file_of) >= set(REGISTERED)


def test_the_hook_is_registered():
    assert HOOKS.get('mmasr.StripeHook').__name__ == 'StripeHook'


def test_the_dataset_is_registered():
    assert DATASETS.get('mmasr.STL10').__name__ == 'STL10'


@pytest.mark.parametrize('name', ['ASR', 'attach', 'fold', *ATTENTIONS])
def test_the_package_has_its_public_names(name):
    assert callable(getattr(mmasr, name))


def test_a_custom_attention_can_be_observed(monkeypatch):
    class Gate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = torch.nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return x * self.gate(x)

    monkeypatch.setitem(mmasr.stripes.VALUES, f'{Gate.__module__}.Gate', 'gate')
    with mmasr.stripes.Observer(torch.nn.Sequential(Gate())) as observer:
        observer.modules['0'](torch.randn(2, 3, 4, 4))
    assert observer.stripes['0'].v.count == 2


# Options that must not change; newer ones are not listed.
OPTIONS = {
    'train': '--work-dir --cfg-options --launcher --amp --resume --auto-scale-lr',
    'test': '--work-dir --cfg-options --launcher --out --show-dir',
    'reparam': '--config --out --force --trust-imports --fold-attention --calibrate --distill '
    '--distill-weights --tolerance --max-drop',
    'export': '--config --out --force --trust-imports --size --int8 --calibrate --max-drop --keep-float',
    'stripes': '--images --out --force --modules --cfg-options',
    'convert': '--attention --out --force',
    'sweep': '--seeds --out',
    'quantization': '--calibrate --rounds --out',
    'style_transfer': '--held-out --style --features --networks --seeds --size --out',
    'removal': '--images --distill --curves --rounds --out',
    'shapes': '--train --val --size --seed',
    'digits': 'out',
    'benchmark': '--model --part --attention --delta --batch --size --rounds --device --threads --amp '
    '--channels-last --compile --launching --out --picture',
}


@pytest.mark.parametrize('tool', sorted(path.stem for path in (ROOT / 'tools').glob('*.py')))
def test_a_tool_has_its_options(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', [f'{tool}.py', '--help'])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert [option for option in OPTIONS.get(tool, '--help').split() if option not in printed] == []


PAGES = [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), ROOT / 'configs/README.md', ROOT / 'tools/README.md']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_the_docs_exist(page):
    named = set(
        re.findall(r'\b(?:configs|tools|docs|tests|mmasr)/[\w/]+\.(?:py|sh|md|png)\b', page.read_text())
    )
    written_by_the_reader = {'configs/fruits.py'}
    of_mmdeploy = {'tools/deploy.py', 'configs/mmdet/detection/detection_onnxruntime_dynamic.py'}
    assert [name for name in named - written_by_the_reader - of_mmdeploy if not (ROOT / name).exists()] == []


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Change to a folder with ``epoch_12.pth``, which the examples use."""
    monkeypatch.chdir(tmp_path)
    config = classifier(
        {'type': 'mmasr.ASRResNet', 'depth': 18, 'out_indices': (3,), 'asr': {'attention': {'type': 'SE'}}},
        512,
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, 'epoch_12.pth')


@pytest.mark.parametrize(
    'documented',
    [mmasr.ASR, mmasr.attach, mmasr.fold, mmasr.stripes.Observer, reparameterize],
    ids=lambda documented: documented.__name__,
)
def test_the_example_works(documented, checkpoint):
    finder = doctest.DocTestFinder(recurse=False)
    examples = finder.find(documented, globs={'reparameterize': reparameterize})
    assert sum(len(test.examples) for test in examples) >= 3
    for test in examples:
        assert doctest.DocTestRunner().run(test).failed == 0
