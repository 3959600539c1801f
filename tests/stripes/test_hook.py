"""The Stripe Observation while a network trains."""

import json
from pathlib import Path

import matplotlib.image
import pytest
import torch
from helpers import CLASSIFIER
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS

import mmasr
from mmasr.errors import InputError
from mmasr.openmmlab.checkpoint import read_checkpoint
from mmasr.stripes import Observer


@MODELS.register_module()
class HeadWithAttention(LinearClsHead):
    """With attention of its own over the features."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.se = mmasr.SE(self.in_channels)

    def pre_logits(self, feats):
        return self.se(feats[-1][..., None, None]).flatten(1)


SE = {'cfg': {'type': 'mmasr.SE'}, 'position': 'after_conv2', 'stages': (True, False, False, False)}
SETTINGS = {
    'model.backbone': {'asr': None, 'base_channels': 32, 'plugins': [SE]},
    'model.head.in_channels': 256,
    'train_cfg': {'max_epochs': 4, 'val_interval': 4},
    'default_hooks': {'checkpoint': {'interval': 2}, 'logger': {'interval': 1}},
    'randomness': {'seed': 0},
}


@pytest.fixture
def train(shapes, tmp_path, monkeypatch):
    """Train the classifier in this process; returns the runner."""
    monkeypatch.chdir(shapes)

    def run(name, hooks=(), **settings):
        config = Config.fromstring(CLASSIFIER, '.py')
        run = {'work_dir': str(tmp_path / name), 'experiment_name': name, 'custom_hooks': [*hooks]}
        config.merge_from_dict({**SETTINGS, **run})
        config.merge_from_dict(settings)
        runner = Runner.from_cfg(config)
        runner.train()
        return runner

    return run


def scalars(runner):
    return [json.loads(line) for line in Path(runner.log_dir, 'vis_data/scalars.json').read_text().splitlines()]


def test_it_logs_draws_resumes_and_changes_nothing(train, tmp_path):
    hook = {'type': 'mmasr.StripeHook', 'images': 3}
    plain = train('plain')
    watched = train('watched', [hook])
    for expected, found in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(expected, found)  # training saw the same random numbers

    history = watched.message_hub.get_info('stripes')
    names = ['backbone.layer1.0.se', 'backbone.layer1.1.se']
    assert history['epochs'] == [1, 2, 3, 4]
    assert list(history['values']) == names
    with Observer(watched.model.eval()) as observer, torch.no_grad():
        for batch in next(h for h in watched.hooks if type(h).__name__ == 'StripeHook').batches:
            watched.model.test_step(batch)
    logged = [line for line in scalars(watched) if f'stripes/{names[0]}/median_std' in line]
    assert [line['step'] for line in logged] == [1, 2, 3, 4]
    for name in names:
        last = history['values'][name][-1]
        assert last.shape == (3, 20)
        # Channels 0 to 31, spread evenly.
        channels = [int(i * 31 / 19) for i in range(20)]
        torch.testing.assert_close(last, observer.stripes[name].rows[1][:, channels].float())
        for figure, value in observer.stripes[name].summary().items():
            assert logged[-1][f'stripes/{name}/{figure}'] == pytest.approx(value, rel=1e-5)
    assert matplotlib.image.imread(tmp_path / 'watched/stripes_changes.png').std() > 0
    assert list((tmp_path / 'watched').glob('*/vis_data/vis_image/stripes_changes*.png'))

    train('resumed', [hook], train_cfg={'max_epochs': 2})
    resumed = train('resumed', [hook], resume=True)
    assert resumed.message_hub.get_info('stripes')['epochs'] == [1, 2, 3, 4]
    for name in names:
        for expected, found in zip(
            history['values'][name], resumed.message_hub.get_info('stripes')['values'][name], strict=True
        ):
            torch.testing.assert_close(found, expected)
    saved = read_checkpoint(tmp_path / 'resumed/epoch_4.pth')  # the restricted reader takes it
    assert saved['message_hub']['runtime_info']['stripes']['epochs'] == [1, 2, 3, 4]


def test_every_k_epochs_and_one_time_is_no_change(train, tmp_path):
    runner = train('two', [{'type': 'mmasr.StripeHook', 'interval': 3, 'images': 2}])
    assert runner.message_hub.get_info('stripes')['epochs'] == [3]
    assert not (tmp_path / 'two/stripes_changes.png').exists()


def test_attention_in_a_head_runs_too(train):
    runner = train('head', [{'type': 'mmasr.StripeHook', 'images': 2}], model={'head': {'type': 'HeadWithAttention'}})
    assert len(runner.message_hub.get_info('stripes')['values']['head.se']) == 4


def test_bad_input_is_one_line(train):
    with pytest.raises(InputError, match='ImageClassifier has no attention'):
        train('none', [{'type': 'mmasr.StripeHook'}], model={'backbone': {'plugins': None}})
    with pytest.raises(InputError, match='no deviations in less than two images, here 1'):
        train('one', [{'type': 'mmasr.StripeHook', 'images': 1}])


def test_on_the_shapes_run(se_checkpoint, shapes):
    """On a detector, from a config."""
    assert (shapes / 'se/stripes_changes.png').exists()
    (lines,) = (shapes / 'se').glob('*/vis_data/scalars.json')
    assert 'stripes/backbone.layer4.1.se/between_channels' in lines.read_text()
