"""Loading, sampling and evaluating the data of a config."""

import pytest
import torch
from helpers import SE_CONFIG
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from torch import nn

from mmasr.errors import InputError
from mmasr.openmmlab.evaluation import build_loader, calibration_dataset, evaluate, main_metric


@DATASETS.register_module(force=True)
class Numbers(BaseDataset):
    """The numbers from 0 to ``count`` - 1."""

    def __init__(self, count, **kwargs):
        self.count = count
        super().__init__(metainfo={'classes': ('a',)}, **kwargs)

    def load_data_list(self):
        return [{'number': i} for i in range(self.count)]


@METRICS.register_module(force=True)
class Sum(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(sample['double'] for sample in data_samples)

    def compute_metrics(self, results):
        return {'sum': sum(results), 'count': len(results), 'classes': len(self.dataset_meta['classes'])}


@METRICS.register_module(force=True)
class Broken(BaseMetric):
    def process(self, data_batch, data_samples):
        raise RuntimeError('no such thing')

    def compute_metrics(self, results):
        return {}


@TRANSFORMS.register_module(force=True)
class Load(LoadImageFromFile):
    """Imitation of an image loader; image 4 can't be read."""

    def transform(self, results):
        if results['number'] == 4:
            raise OSError('truncated')
        return {**results, 'img_path': f'{results["number"]}.jpg'}


@TRANSFORMS.register_module(force=True)
class Lookup(BaseTransform):
    def transform(self, results):
        return results['nothing']


class Double(nn.Module):
    def test_step(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [{'double': 2 * number} for number in batch['number']]


def config(count=10, **dataset):
    loader = {'batch_size': 3, 'num_workers': 0, 'sampler': {'type': 'DefaultSampler', 'shuffle': True}}
    return Config(
        {
            'test_dataloader': {**loader, 'dataset': {'type': 'Numbers', 'count': count, **dataset}},
            'train_dataloader': {
                **loader,
                'dataset': {'type': 'Numbers', 'count': 30, 'pipeline': [{'type': 'A'}]},
            },
        }
    )


def numbers(loader):
    return [number for batch in loader for number in batch['number']]


def test_all_images_are_loaded_in_order():
    assert numbers(build_loader(config())) == list(range(10))


def test_the_same_random_images_are_drawn_each_time():
    drawn = numbers(build_loader(config(100), images=20))
    assert len(set(drawn)) == 20
    assert drawn != sorted(drawn)
    assert drawn == numbers(build_loader(config(100), images=20))


def test_drawing_more_images_than_exist_yields_all_of_them():
    assert sorted(numbers(build_loader(config(), images=99))) == list(range(10))


def test_two_processes_load_each_image_once(monkeypatch):
    """By default, mmengine's sampler repeats images to make the shares equal."""
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        shares += numbers(build_loader(config(9)))
    assert sorted(shares) == list(range(9))


def test_evaluate_runs_in_eval_mode_and_returns_metrics():
    found = evaluate(Double().train(), build_loader(config()), {'type': 'Sum'})
    assert found == {'sum': 90, 'count': 10, 'classes': 1}


def test_evaluate_without_metrics_returns_none_of_them():
    assert evaluate(Double(), build_loader(config()), []) == {}


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (Config({}), 'no test_dataloader'),
        (Config({'test_dataloader': 3}), 'no test_dataloader'),
        (Config({'test_dataloader': {'batch_size': 1}}), "the config's data does not load"),
        (config(0), 'the dataset is empty'),
        (
            config(pipeline=[{'type': 'NoSuchTransform'}]),
            "the config's data does not load: KeyError: .*NoSuchTransform",
        ),
    ],
    ids=['no data', 'a number', 'no dataset', 'an empty dataset', 'an unknown transform'],
)
def test_bad_data_is_an_error_of_one_line(broken, message):
    with pytest.raises(InputError, match=message) as caught:
        build_loader(broken)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('transform', 'metric', 'message'),
    [
        ('Load', 'Sum', r"can't be read as an image: OSError: truncated"),
        ('Lookup', 'Sum', "evaluating failed: KeyError: 'nothing'"),
        (None, 'NoSuchMetric', "evaluating failed: KeyError: 'NoSuchMetric is not in"),
        (None, 'Broken', 'evaluating failed: RuntimeError: no such thing'),
    ],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_a_failure_during_evaluation_is_an_error_of_one_line(transform, metric, message, workers):
    broken = config(pipeline=[{'type': transform}] if transform else [])
    broken.test_dataloader.num_workers = workers
    with pytest.raises(InputError, match=f'^[^\\n]*{message}[^\\n]*$'):
        evaluate(Double(), build_loader(broken), {'type': metric})


@pytest.mark.parametrize(
    'settings', [{'num_workers': -1}, {'persistent_workers': True}, {'collate_fn': {'type': 'x'}}]
)
def test_invalid_dataloader_settings_are_an_error_of_one_line(settings):
    broken = config()
    broken.test_dataloader.update(settings)
    with pytest.raises(InputError, match=r"^the config's data does not load: [^\n]*$"):
        build_loader(broken)


@pytest.mark.parametrize('training', [None, {}, {'batch_size': 3}, {'dataset': 'x'}])
def test_calibration_needs_training_data(training):
    with pytest.raises(InputError, match='no train_dataloader and test_dataloader'):
        calibration_dataset(Config({'test_dataloader': {'dataset': {}}, 'train_dataloader': training}))


def test_calibration_uses_training_images_with_the_test_pipeline():
    shapes = Config.fromfile(SE_CONFIG)
    found = calibration_dataset(shapes)
    assert found['ann_file'] == 'train.json'
    assert found['pipeline'] == shapes.test_dataloader.dataset.pipeline


def test_calibration_removes_wrappers_that_repeat_or_mix_images():
    inner = {'type': 'Numbers', 'count': 4, 'pipeline': [{'type': 'A'}]}
    mixed = {
        'type': 'MultiImageMixDataset',
        'dataset': {'type': 'RepeatDataset', 'times': 3, 'dataset': inner},
        'pipeline': [],
    }
    wrapped = config(pipeline=[{'type': 'B'}])
    wrapped.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [mixed, inner]}
    expected = {'type': 'Numbers', 'count': 4, 'pipeline': [{'type': 'B'}]}
    assert calibration_dataset(wrapped) == {'type': 'ConcatDataset', 'datasets': [expected, expected]}


@pytest.mark.parametrize('part', ['train_dataloader', 'test_dataloader'])
def test_a_wrapped_dataset_must_be_a_dict(part):
    wrapped = config()
    wrapped[part].dataset = {'type': 'RepeatDataset', 'dataset': 'numbers'}
    with pytest.raises(InputError, match="must be a dict, not 'numbers'"):
        calibration_dataset(wrapped)


@pytest.mark.parametrize(
    ('hooks', 'expected'),
    [
        ({'checkpoint': {'save_best': 'b'}}, 'b'),
        ({'checkpoint': {'save_best': ['b', 'a']}}, 'b'),
        ({'checkpoint': {'save_best': 'auto'}}, 'a'),
        ({'checkpoint': {'save_best': []}}, 'a'),
        ({'checkpoint': None}, 'a'),
        (None, 'a'),
    ],
)
def test_the_main_metric_selects_the_best_checkpoint(hooks, expected):
    assert main_metric(Config({'default_hooks': hooks}), {'a': 1, 'b': 2}) == expected


def test_an_evaluator_without_metrics_is_an_error():
    with pytest.raises(InputError, match='its evaluator returns no metrics'):
        main_metric(Config({}), {})
