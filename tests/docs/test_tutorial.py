"""The tutorial runs, and folds, exports and removes what its text says."""

import re

import nbclient
import nbformat
import pytest
import torch
from helpers import ROOT


@pytest.fixture
def tutorial():
    return nbformat.read(ROOT / 'docs/tutorial.ipynb', as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_the_repository_holds_no_outputs(tutorial):
    assert not [cell for cell in code(tutorial) if cell.outputs or cell.execution_count]


@pytest.mark.xdist_group('tutorial')
@pytest.mark.skipif(torch.__version__ < (2, 5), reason='before torch 2.5, onnx.export has no option dynamo')
def test_the_tutorial_runs(tutorial, tmp_path):
    (parameters,) = [cell for cell in code(tutorial) if 'parameters' in cell.metadata.get('tags', [])]
    parameters.source = 'EPOCHS = 2'
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(tutorial, timeout=300, resources=resources).execute()
    outputs = [output for cell in code(tutorial) for output in cell.outputs]
    printed = ''.join(output.get('text', '') for output in outputs)
    assert 'same classes as the plain network: True' in printed
    assert '<All keys matched successfully>' in printed
    assert float(re.search('relative to the largest output: (.*)', printed)[1]) < 1e-4
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4
    assert not list(tmp_path.iterdir())
