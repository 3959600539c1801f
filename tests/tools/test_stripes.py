"""tools/stripes.py on a detector."""

import json
import re
import shutil

import pytest
from helpers import run_tool

from mmasr.stripes.report import FILES


@pytest.fixture(scope='module')
def run(se_checkpoint, shapes):
    """Return the folder that the tool writes for a detector with SE, and its output."""
    options = ['--out', 'stripes', '--modules', 'backbone.layer2.0.se']
    result = run_tool('stripes.py', *se_checkpoint, *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return shapes / 'stripes', result.stdout


def test_it_observes_every_module_on_every_image(run):
    folder, _ = run
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    found = json.loads((folder / 'stripes.json').read_text())
    assert found['about']['images'] == 4
    assert [m['name'] for m in found['modules']] == [
        f'backbone.layer{i}.{j}.se' for i in (1, 2, 3, 4) for j in (0, 1)
    ]
    for m in found['modules']:
        assert m['images'] == 4
        assert len(m['v']['mean']) == m['channels']


def test_it_prints_the_same_numbers_as_the_page(run):
    folder, printed = run
    page = (folder / 'stripes.html').read_text()
    for m in json.loads((folder / 'stripes.json').read_text())['modules']:
        assert f'{m["median_std"]:.4f}' in page
        assert f'{m["median_std"]:.4f}' in printed


def test_the_page_of_a_detector_refers_to_the_papers_figure_of_a_detector(run):
    assert 'Fig. 4' in (run[0] / 'stripes.html').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'stripes'], r'stripes/stripes\.json already exists; pass --force'),
        (['--out', 'other', '--images', '1'], 'a standard deviation needs at least two images'),
        (
            ['--out', 'other', '--modules', 'none'],
            '--modules none: no such attention module; there are backbone',
        ),
        (
            ['--out', 'other', '--cfg-options', 'test_dataloader.dataset.indices=1'],
            'a standard deviation needs at least two images',
        ),
    ],
    ids=['existing files', '--images 1', 'an unknown module', 'a dataset with one image'],
)
@pytest.mark.usefixtures('run')
def test_unusable_arguments_are_rejected_and_nothing_is_written(
    se_checkpoint, shapes, refusal, arguments, message
):
    assert re.search(message, refusal('stripes.py', *se_checkpoint, *arguments, cwd=shapes))
    assert not (shapes / 'other').exists()


def test_force_replaces_the_files(se_checkpoint, shapes, run, tmp_path):
    out = shutil.copytree(run[0], tmp_path / 'stripes')
    result = run_tool('stripes.py', *se_checkpoint, '--out', out, '--force', '--images', '3', cwd=shapes)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / 'stripes.json').read_text())['about']['images'] == 3


def test_a_network_without_attention_is_rejected(checkpoint, shapes, refusal):
    message = refusal(
        'stripes.py', shapes / 'work/mask_rcnn_r18_asr_se.py', checkpoint, '--out', 'other', cwd=shapes
    )
    assert message.startswith('error: MaskRCNN has no attention that depends on its input')
