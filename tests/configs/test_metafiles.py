"""The model index, read by the library that MIM uses."""

import pytest
from helpers import ROOT
from metafiles import model_index
from modelindex.load_model_index import load


@pytest.fixture(scope='module')
def index():
    found = load(str(ROOT / 'model-index.yml'))
    found.build_models_with_collections()
    return found


def test_the_files_are_up_to_date():
    for path, text in model_index().items():
        assert path.read_text() == text, 'run python tests/configs/metafiles.py'


def test_it_lists_all_configs(index):
    configs = [path.relative_to(ROOT) for path in ROOT.glob('configs/**/*.py')]
    listed = [model.config for model in index.models]
    assert sorted(listed) == sorted(str(path) for path in configs if '_base_' not in path.parts)
    assert len({model.name for model in index.models}) == len(listed)


def test_every_collection_has_models(index):
    assert {model.in_collection for model in index.models} - {None} == {c.name for c in index.collections}


def test_it_lists_no_weights_and_no_results(index):
    assert not [model.name for model in index.models if model.weights or model.results]
