"""The Stripe Observation during training."""

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
from mmasr.stripes import Observer
from mmasr.untrusted.checkpoint import read_checkpoint


@MODELS.register_module()
class HeadWithAttention(LinearClsHead):
    """A classification head with its own attention over the features."""

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
    """Return a function that trains the classifier in this process and returns the runner."""
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
    """Return the runner of a whole training with the hook."""
    return train('watched', [{'type': 'mmasr.StripeHook', 'images': 3}])


@pytest.fixture(scope='module')
def resumed(train):
    """Return the runner of the same training, interrupted after two epochs and resumed."""
    hook = {'type': 'mmasr.StripeHook', 'images': 3}
    train('resumed', [hook], train_cfg={'max_epochs': 2})
    return train('resumed', [hook], resume=True)


@pytest.fixture(scope='module')
def observer(watched):
    """Return an observer of the trained network on the hook's images."""
    with Observer(watched.model.eval()) as observer, torch.no_grad():
        for batch in next(h for h in watched.hooks if type(h).__name__ == 'StripeHook').batches:
            watched.model.test_step(batch)
    return observer


def history(runner):
    return runner.message_hub.get_info('stripes')


def test_training_is_the_same_with_the_hook(train, watched):
    plain = train('plain')
    for expected, found in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(expected, found)  # training drew the same random numbers


def test_it_records_the_values_of_twenty_channels_after_every_epoch(watched, observer):
    assert history(watched)['epochs'] == [1, 2, 3, 4]
    assert list(history(watched)['values']) == NAMES
    for name in NAMES:
        last = history(watched)['values'][name][-1]
        assert last.shape == (3, 20)
        # 20 of the 32 channels, at even distances.
        channels = [int(i * 31 / 19) for i in range(20)]
        torch.testing.assert_close(last, observer.stripes[name].rows[1][:, channels].float())


def test_it_logs_the_summary_of_every_epoch(watched, observer):
    scalars = [
        json.loads(line) for line in Path(watched.log_dir, 'vis_data/scalars.json').read_text().splitlines()
    ]
    logged = [line for line in scalars if f'stripes/{NAMES[0]}/median_std' in line]
    assert [line['step'] for line in logged] == [1, 2, 3, 4]
    for name in NAMES:
        for key, value in observer.stripes[name].summary().items():
            assert logged[-1][f'stripes/{name}/{key}'] == pytest.approx(value, rel=1e-5)


def test_it_draws_the_changes_into_a_file_and_the_visualizer(watched):
    folder = Path(watched.work_dir)
    assert matplotlib.image.imread(folder / 'stripes_changes.png').std() > 0
    assert list(folder.glob('*/vis_data/vis_image/stripes_changes*.png'))


def test_its_records_resume_with_the_training(watched, resumed):
    assert history(resumed)['epochs'] == [1, 2, 3, 4]
    for name in NAMES:
        for expected, found in zip(
            history(watched)['values'][name], history(resumed)['values'][name], strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_the_reader_of_untrusted_checkpoints_accepts_its_records(resumed):
    saved = read_checkpoint(Path(resumed.work_dir, 'epoch_4.pth'))
    assert saved['message_hub']['runtime_info']['stripes']['epochs'] == [1, 2, 3, 4]


def test_it_records_at_an_interval_and_draws_no_picture_of_a_single_record(train):
    runner = train('two', [{'type': 'mmasr.StripeHook', 'interval': 3, 'images': 2}])
    assert history(runner)['epochs'] == [3]
    assert not Path(runner.work_dir, 'stripes_changes.png').exists()


def test_attention_in_a_head_is_recorded(train):
    runner = train(
        'head', [{'type': 'mmasr.StripeHook', 'images': 2}], model={'head': {'type': 'HeadWithAttention'}}
    )
    assert len(history(runner)['values']['head.se']) == 4


def test_a_network_without_attention_is_rejected(train):
    with pytest.raises(InputError, match='ImageClassifier has no attention'):
        train('none', [{'type': 'mmasr.StripeHook'}], model={'backbone': {'plugins': None}})


def test_a_single_image_is_rejected(train):
    with pytest.raises(InputError, match='a standard deviation needs at least two images, but found 1'):
        train('one', [{'type': 'mmasr.StripeHook', 'images': 1}])


def test_a_config_adds_it_to_a_detector(se_checkpoint, shapes):
    assert (shapes / 'se/stripes_changes.png').exists()
    (lines,) = (shapes / 'se').glob('*/vis_data/scalars.json')
    assert 'stripes/backbone.layer4.1.se/between_channels' in lines.read_text()
