"""The guides in docs/: quoted messages exist, all cards have the same form, and rules for weight decay hold."""

import ast
import re

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmasr.openmmlab.building import build_model

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
    parts = [part for part in re.split('⟨.+?⟩|[:;] ', message) if re.search(r'\w', part)]
    assert [part for part in parts if not any(part in text for text in sources)] == []
