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


NAMES = ['backbone.layer1.0.se', 'backbone.layer1.1.se']


@pytest.fixture(scope='module')
def train(shapes, tmp_path_factory):
    """Train the classifier in this process; returns the runner."""
    folder = tmp_path_factory.mktemp('hook')

    def run(name, hooks=(), **settings):
        config = Config.fromstring(CLASSIFIER, '.py')
        run = {'work_dir': str(folder / name), 'experiment_name': name, 'custom_hooks': [*hooks]}
        config.merge_from_dict({**SETTINGS, **run})
        config.merge_from_dict(settings)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(shapes)
            runner = Runner.from_cfg(config)
            runner.train()
        return runner

    return run


@pytest.fixture(scope='module')
def watched(train):
    """The runner of a whole training with the hook."""
    return train('watched', [{'type': 'mmasr.StripeHook', 'images': 3}])


@pytest.fixture(scope='module')
def resumed(train):
    """The runner of the second half of the same training, begun anew from the checkpoint of the first."""
    hook = {'type': 'mmasr.StripeHook', 'images': 3}
    train('resumed', [hook], train_cfg={'max_epochs': 2})
    return train('resumed', [hook], resume=True)


@pytest.fixture(scope='module')
def observer(watched):
    """What is observed on the hook's images once the training is over."""
    with Observer(watched.model.eval()) as observer, torch.no_grad():
        for batch in next(h for h in watched.hooks if type(h).__name__ == 'StripeHook').batches:
            watched.model.test_step(batch)
    return observer


def history(runner):
    return runner.message_hub.get_info('stripes')


def test_it_does_not_change_the_training(train, watched):
    plain = train('plain')
    for expected, found in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(expected, found)  # training saw the same random numbers


def test_it_keeps_the_values_of_twenty_channels_after_every_epoch(watched, observer):
    assert history(watched)['epochs'] == [1, 2, 3, 4]
    assert list(history(watched)['values']) == NAMES
    for name in NAMES:
        last = history(watched)['values'][name][-1]
        assert last.shape == (3, 20)
        # Channels 0 to 31, spread evenly.
        channels = [int(i * 31 / 19) for i in range(20)]
        torch.testing.assert_close(last, observer.stripes[name].rows[1][:, channels].float())


def test_it_logs_the_figures_of_every_epoch(watched, observer):
    scalars = [json.loads(line) for line in Path(watched.log_dir, 'vis_data/scalars.json').read_text().splitlines()]
    logged = [line for line in scalars if f'stripes/{NAMES[0]}/median_std' in line]
    assert [line['step'] for line in logged] == [1, 2, 3, 4]
    for name in NAMES:
        for figure, value in observer.stripes[name].summary().items():
            assert logged[-1][f'stripes/{name}/{figure}'] == pytest.approx(value, rel=1e-5)


def test_it_draws_the_changes(watched):
    folder = Path(watched.work_dir)
    assert matplotlib.image.imread(folder / 'stripes_changes.png').std() > 0
    assert list(folder.glob('*/vis_data/vis_image/stripes_changes*.png'))


def test_it_goes_on_where_a_resumed_training_was_left(watched, resumed):
    assert history(resumed)['epochs'] == [1, 2, 3, 4]
    for name in NAMES:
        for expected, found in zip(history(watched)['values'][name], history(resumed)['values'][name], strict=True):
            torch.testing.assert_close(found, expected)


def test_the_restricted_reader_takes_its_checkpoints(resumed):
    saved = read_checkpoint(Path(resumed.work_dir, 'epoch_4.pth'))
    assert saved['message_hub']['runtime_info']['stripes']['epochs'] == [1, 2, 3, 4]


def test_every_k_epochs_and_one_time_is_no_change(train):
    runner = train('two', [{'type': 'mmasr.StripeHook', 'interval': 3, 'images': 2}])
    assert history(runner)['epochs'] == [3]
    assert not Path(runner.work_dir, 'stripes_changes.png').exists()


def test_attention_in_a_head_runs_too(train):
    runner = train('head', [{'type': 'mmasr.StripeHook', 'images': 2}], model={'head': {'type': 'HeadWithAttention'}})
    assert len(history(runner)['values']['head.se']) == 4


def test_a_network_without_attention_is_refused(train):
    with pytest.raises(InputError, match='ImageClassifier has no attention'):
        train('none', [{'type': 'mmasr.StripeHook'}], model={'backbone': {'plugins': None}})


def test_one_image_is_refused(train):
    with pytest.raises(InputError, match='no deviations in less than two images, here 1'):
        train('one', [{'type': 'mmasr.StripeHook', 'images': 1}])


def test_on_the_shapes_run(se_checkpoint, shapes):
    """On a detector, from a config."""
    assert (shapes / 'se/stripes_changes.png').exists()
    (lines,) = (shapes / 'se').glob('*/vis_data/scalars.json')
    assert 'stripes/backbone.layer4.1.se/between_channels' in lines.read_text()
