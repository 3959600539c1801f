"""The build steps of the documentation site; `make docs` checks the pages themselves."""

import importlib.util
import logging
import types

import pytest
from helpers import ROOT

pytest.importorskip('mkdocs', reason='the extra `docs` is not installed')


@pytest.fixture(scope='module')
def hooks():
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs/_site/hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('page', 'link', 'rewritten'),
    [
        ('deploy.md', '[a](stripes.md#b)', '[a](stripes.md#b)'),
        ('deploy.md', '![a](stripes_images.png)', '![a](stripes_images.png)'),
        ('deploy.md', '[a](#b), [c](https://arxiv.org/abs/2304.06345)', None),
        ('deploy.md', '[a](../SECURITY.md)', '[a](project/security.md)'),
        ('index.md', '[docs/deploy.md](docs/deploy.md)', '[docs/deploy.md](deploy.md)'),
        ('index.md', '[`a[0]`](configs/README.md#b)', '[`a[0]`](reference/configs.md#b)'),
        ('reference/configs.md', '[a](../docs/deploy.md#b)', '[a](../deploy.md#b)'),
        ('reference/configs.md', '[mask_rcnn_r50.py](mask_rcnn_r50.py)', '`mask_rcnn_r50.py`'),
        ('deploy.md', '[a tool](../tools/env.py)', 'a tool (`tools/env.py`)'),
        ('deploy.md', '`[a](../SECURITY.md)`', None),
        ('deploy.md', '```python\nx[a](../SECURITY.md)\n```', None),
    ],
)
def test_links_lead_to_pages_of_the_site(hooks, page, link, rewritten, caplog):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(link, page, None, None) == (rewritten or link)
    assert not caplog.records


def test_a_link_to_a_missing_file_is_a_warning(hooks, caplog):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri='deploy.md'))
    with caplog.at_level(logging.WARNING):
        hooks.on_page_markdown('[a](../tools/none.py)', page, None, None)
    assert caplog.messages == ['docs/deploy.md: tools/none.py does not exist']
