"""What the tests of several rooms share."""

import contextlib
import copy
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from forked import run_python
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmasr.openmmlab.building import build_model

ROOT = Path(__file__).parents[1]
SHAPES_CONFIG = ROOT / 'configs/shapes/mask_rcnn_r18_asr_se.py'
SE_CONFIG = ROOT / 'configs/shapes/mask_rcnn_r18_se.py'

#: A small classifier; the folders maps, train and val of the shapes stand for three classes.
CLASSIFIER = """
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['mmasr'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[128] * 3, std=[64] * 3),
    backbone=dict(
        type='mmasr.ASRResNet',
        depth=18,
        base_channels=8,
        out_indices=(3,),
        norm_eval=False,
        asr=dict(attention=dict(type='SE')),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root='data/shapes', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    ),
)
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
"""


def run_tool(name: str, *args, cwd: Path) -> subprocess.CompletedProcess:
    """Run a tool as a user would."""
    return run_python(ROOT / 'tools' / name, *args, cwd=cwd)


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and running statistic a value that a fold could get wrong: none is 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.uniform_(0.5, 1.5)
    return module


def classifier(backbone: dict, channels: int, neck: bool = True) -> Config:
    """The config of a classifier of ten classes without data."""
    head = {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': channels, 'loss': {'type': 'CrossEntropyLoss'}}
    pooling = {'type': 'GlobalAveragePooling'} if neck else None
    model = {'type': 'ImageClassifier', 'backbone': backbone, 'neck': pooling, 'head': head}
    return Config({'model': model, 'default_scope': 'mmpretrain', 'custom_imports': {'imports': ['mmasr']}})


def plugin(name: str, position: str = 'after_conv3', **options) -> dict:
    """The config of one of our modules as a plugin of a ResNet."""
    return {'cfg': {'type': f'mmasr.{name}', **options}, 'position': position}


def save_network(path: Path, config: Config, ready: Callable = lambda network: network) -> torch.nn.Module:
    """Save a checkpoint of a config's network, made ready, with the config in it; returns the network."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        network = ready(MODELS.build(copy.deepcopy(config.model)))
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': network.state_dict()}, path)
    return network


def built(config: Config, checkpoint: Path) -> torch.nn.Module:
    """The network of a config, with all the weights of a checkpoint."""
    model = build_model(config)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)
    return model


def agrees(model: torch.nn.Module, other: torch.nn.Module, x: torch.Tensor, bound: float = 1e-5) -> bool:
    """Whether two networks differ by no more than a bound, relative to the largest output, in eval mode."""
    with torch.no_grad():
        expected, found = other.eval()(x), model.eval()(x)
    assert expected.std() > 0
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


# MMDetection's side, in an interpreter where importing mmasr fails.
STOCK = """
import sys
sys.modules['mmasr'] = None
import torch
from mmdet.apis import inference_detector, init_detector
config, checkpoint, images, out = sys.argv[1:]
model = init_detector(config, checkpoint, device='cpu')
model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)
found = [inference_detector(model, image).pred_instances for image in torch.load(images, weights_only=False)]
torch.save([(f.bboxes, f.scores, f.labels, f.masks) for f in found], out)
assert not [name for name in sys.modules if name.startswith('mmasr.')]
"""


def stock_predictions(
    config: Path, checkpoint: Path, images: list, folder: Path, python: Path | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """Boxes, scores, labels and masks that MMDetection alone predicts for images, each a path or an array; in the environment
    of another interpreter, if one is given."""
    torch.save(images, folder / 'images.pt')
    files = config, checkpoint, folder / 'images.pt', folder / 'predictions.pt'
    if python is None:
        run_python(STOCK, *files).check_returncode()
    else:
        subprocess.run([python, '-c', STOCK, *files], check=True)
    return torch.load(folder / 'predictions.pt')


class Call:
    """Unpickles as what a function returns."""

    def __init__(self, function: Callable, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Touch(Call):
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        super().__init__(os.mknod, str(path))


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow over a size in bytes, as when the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
