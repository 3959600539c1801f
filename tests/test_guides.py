"""The guides in docs/: messages exist, cards have one form, snippets build, weight decay is as described."""

import ast
import re
import runpy

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from mmasr.openmmlab.building import build_model
from mmasr.openmmlab.config import default_scope, without_downloads

TROUBLESHOOTING = (ROOT / 'docs/troubleshooting.md').read_text()
MESSAGES = re.findall(r'^```text\n(.+)\n```$', TROUBLESHOOTING, re.M)


@pytest.fixture(scope='module')
def sources():
    """Return all texts in the sources, with `~` for a value and options in place of parameters."""
    texts = []
    for path in (*ROOT.glob('mmasr/**/*.py'), *ROOT.glob('tools/*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else '~' for part in node.values]
                texts.append(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r'\{[\w.]+\}', '~', node.value))
    return [re.sub(r'`(\w+)`', lambda name: f'--{name[1].replace("_", "-")}', text) for text in texts]


def test_the_page_quotes_twenty_messages():
    assert len(set(MESSAGES)) == len(MESSAGES) >= 20


@pytest.mark.parametrize('message', MESSAGES)
def test_a_quoted_message_is_in_the_sources(message, sources):
    """A message may be composed of several texts, so each clause is looked for by itself."""
    parts = [part for part in map(str.strip, re.split('⟨.+?⟩|[:;] ', message)) if re.search(r'\w', part)]
    assert [part for part in parts if not any(part in text for text in sources)] == []


CARDS = sorted(ROOT.glob('docs/cards/*.md'))


@pytest.mark.parametrize('card', CARDS, ids=lambda card: card.stem)
def test_a_card_has_the_common_form(card):
    text = card.read_text()
    assert re.findall('^## (.+)', text, re.M) == ['Use it', 'Set', 'Cost and gain', 'Combine', 'Source']
    assert re.findall(r'^\| (\w+, \w+) \|', text, re.M) == [
        *('cost, here', 'cost, paper', 'gain, here', 'gain, paper')
    ]
    assert text.count(f']({card.stem}.svg)') == text.count('**With:**') == text.count('**Not when:**') == 1
    assert f'(cards/{card.name})' in (ROOT / 'docs/choose.md').read_text()


@pytest.mark.parametrize('card', CARDS, ids=lambda card: card.stem)
def test_the_config_of_a_card_builds(card, tmp_path):
    (tmp_path / 'mine.py').write_text(re.search(r'```python\n(_base_.+?)```', card.read_text(), re.S)[1])
    config = Config.fromfile(tmp_path / 'mine.py')
    with DefaultScope.overwrite_default_scope(default_scope(config)):
        backbone = MODELS.build(without_downloads(config.model.backbone.to_dict()))
    inserted = 'se' if card.stem == 'removal' else card.stem
    assert any(type(module).__name__.lower().startswith(inserted) for module in backbone.modules())


def test_the_script_draws_the_pictures_of_all_cards():
    pictures = runpy.run_path(str(ROOT / 'docs/_figures/cards.py'))['pictures']()
    assert {card.stem for card in CARDS} == set(pictures)
    files = list(ROOT.glob('docs/cards/*.svg'))
    assert {file.stem for file in files} == set(pictures)
    assert max(file.stat().st_size for file in files) < 20_000


def decays(name, paramwise):
    """Return learning rate and weight decay of each parameter that trains, with `paramwise_cfg`."""
    config = Config.fromfile(ROOT / 'configs' / name)
    model = build_model(config)
    config.merge_from_dict({'optim_wrapper.paramwise_cfg': paramwise})
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group['params']}
    return {
        name.removeprefix('backbone.layer2.0.'): (group['lr'], group['weight_decay'])
        for name, group in groups.items()
        if name.startswith('backbone.layer2.0.')
    }


def test_rules_for_biases_and_normalizations_do_not_reach_psi():
    found = decays(
        'mask_rcnn_r50_asr_se.py', {'bias_decay_mult': 0, 'norm_decay_mult': 0, 'flat_decay_mult': 0}
    )
    assert found['bn3.asr.psi'] == found['bn3.asr.attention.0.fc1.weight'] == (0.02, 1e-4)
    assert found['bn3.asr.attention.0.fc1.bias'] == found['bn3.weight'] == (0.02, 0)


def test_a_custom_key_exempts_psi_and_kappa():
    found = decays('mask_rcnn_r50_asr_se.py', {'custom_keys': {'.asr.': {'decay_mult': 0}}})
    assert {value for name, value in found.items() if '.asr.' in name} == {(0.02, 0)}
    assert found['bn3.weight'] == (0.02, 1e-4)


@pytest.mark.parametrize(('key', 'decay'), [('.asr.', 1e-4), ('.bn3.asr.', 0)])
def test_the_longest_custom_key_wins(key, decay):
    found = decays('dino_r50_asr_se.py', {'custom_keys': {key: {'lr_mult': 0.1, 'decay_mult': 0}}})
    assert found['bn3.asr.psi'] == pytest.approx((1e-5, decay))
