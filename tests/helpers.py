"""Helpers that tests of several rooms share."""

import contextlib
import copy
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from forked import run_python
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

import mmasr
from mmasr.openmmlab.building import build_model
from mmasr.untrusted import data_only

ROOT = Path(__file__).parents[1]
SHAPES_CONFIG = ROOT / 'configs/shapes/mask_rcnn_r18_asr_se.py'
SE_CONFIG = ROOT / 'configs/shapes/mask_rcnn_r18_se.py'

#: A small classifier. The folders `maps`, `train` and `val` of the shapes dataset serve as three classes.
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
    head=dict(
        type='LinearClsHead', num_classes=3, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)
    ),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/shapes',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
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
    """Run a tool of `tools/` as a user would."""
    return run_python(ROOT / 'tools' / name, *args, cwd=cwd)


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Draw all parameters and running statistics, since values of 0 and 1 may hide a wrong fold."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.uniform_(0.5, 1.5)
    return module


def randomize_norms(network: torch.nn.Module) -> torch.nn.Module:
    """Draw parameters and running statistics of every BatchNorm, and set eval mode.

    The values stay near those of a trained network, so that deep networks can be compared.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                torch.nn.init.uniform_(tensor, low, high)
    network.eval()  # which does not return the network in every library
    return network


def randomize_scales(module: torch.nn.Module) -> torch.nn.Module:
    """Draw ψ of every ASR from a normal distribution, so that no scale is the initial one."""
    for asr in module.modules():
        if isinstance(asr, mmasr.ASR):
            torch.nn.init.normal_(asr.psi)
    return module


def assert_folds_to(model: torch.nn.Module, *stock_types: type) -> None:
    """Fold a backbone; check that its outputs stay the same and that all its modules are stock types."""
    x = torch.randn(2, 3, 64, 64)
    randomize_scales(model).eval()
    expected = model(x)
    mmasr.fold(model)
    for actual, reference in zip(model(x), expected, strict=True):
        # One more rounding per layer in float32; a missing fold would be off by half.
        assert (actual - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert not [m for m in model.modules() if type(m).__module__.startswith('mmasr')]
    for stock_type in stock_types:
        assert any(isinstance(m, stock_type) for m in model.modules())


def small_detector(**backbone) -> Config:
    """Return the config of a narrow Mask R-CNN without data, whose backbone has these arguments."""
    config = Config.fromfile(SHAPES_CONFIG)
    config = Config({key: config[key] for key in ('model', 'default_scope', 'custom_imports')})
    config.model.backbone.update({'base_channels': 8, **backbone})
    deep = backbone.get('depth', 18) >= 50
    config.model.neck.in_channels = [8 * 2**i * (4 if deep else 1) for i in range(4)]
    return config


def without_asr(**backbone) -> Config:
    """Return the same config as :func:`small_detector`, without the ASR of the backbone itself."""
    config = small_detector(**backbone)
    del config.model.backbone['asr']
    return config


#: A backbone with ASR for checkpoints that are read, changed and written with all their tensors.
TWO_STAGES = {
    'type': 'mmasr.ASRResNet',
    'depth': 18,
    'base_channels': 8,
    'num_stages': 2,
    'strides': (1, 2),
    'dilations': (1, 1),
    'out_indices': (1,),
    'asr': {'attention': {'type': 'SE'}},
}


def classifier(backbone: dict, channels: int, neck: bool = True) -> Config:
    """Return the config of a classifier of ten classes, without data."""
    head = {
        'type': 'LinearClsHead',
        'num_classes': 10,
        'in_channels': channels,
        'loss': {'type': 'CrossEntropyLoss'},
    }
    pooling = {'type': 'GlobalAveragePooling'} if neck else None
    model = {'type': 'ImageClassifier', 'backbone': backbone, 'neck': pooling, 'head': head}
    return config_of(model, 'mmpretrain')


def with_images(config: Config, folder: Path) -> Config:
    """Give a classifier the data that :func:`write_image_config` writes, 64 pixels large, and two classes."""
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': 64}, {'type': 'PackInputs'}]
    loader = {
        'batch_size': 4,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': {'type': 'CustomDataset', 'data_root': str(folder), 'pipeline': pipeline},
    }
    config.model.head.update(num_classes=2, topk=(1,))
    config.update(
        {
            'data_preprocessor': {'num_classes': 2, 'mean': [128] * 3, 'std': [64] * 3},
            'train_dataloader': loader,
            'test_dataloader': loader,
            'test_evaluator': {'type': 'Accuracy', 'topk': (1,)},
        }
    )
    return config


def config_of(model: dict, scope: str) -> Config:
    """Return the config of a model without data."""
    return Config({'model': model, 'default_scope': scope, 'custom_imports': {'imports': ['mmasr']}})


def retinanet(backbone: dict) -> Config:
    """Return the config of a narrow RetinaNet whose backbone is a ResNet-18 with 8 base channels."""
    head = {
        'type': 'RetinaHead',
        'num_classes': 3,
        'in_channels': 16,
        'feat_channels': 16,
        'stacked_convs': 1,
        'anchor_generator': {
            'type': 'AnchorGenerator',
            'scales': [4],
            'ratios': [1.0],
            'strides': [8, 16, 32],
        },
    }
    neck = {
        'type': 'FPN',
        'in_channels': [8, 16, 32, 64],
        'start_level': 1,
        'out_channels': 16,
        'num_outs': 3,
    }
    model = {'type': 'RetinaNet', 'backbone': backbone, 'neck': neck, 'bbox_head': head}
    return config_of(model, 'mmdet')


def segmentor(backbone: dict, channels: int = 64, **options) -> Config:
    """Return a segmentor's config without data; ``channels`` are those of the backbone's last feature map."""
    head = {
        'type': 'FCNHead',
        'in_channels': channels,
        'in_index': -1,
        'channels': 8,
        'num_classes': 3,
        'loss_decode': {'type': 'CrossEntropyLoss'},
    }
    heads = {'decode_head': head, 'auxiliary_head': [head]}
    return config_of({'type': 'EncoderDecoder', 'backbone': backbone, **heads, **options}, 'mmseg')


def plugin(name: str, position: str = 'after_conv3', **options) -> dict:
    """Return the config of a module of mmasr as a plugin of a ResNet."""
    return {'cfg': {'type': f'mmasr.{name}', **options}, 'position': position}


def save_network(path: Path, config: Config, prepare: Callable = lambda network: network) -> torch.nn.Module:
    """Build a config's network, prepare it, save it with the embedded config, and return it."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        network = prepare(MODELS.build(copy.deepcopy(config.model)))
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': network.state_dict()}, path)
    return network


def built(config: Config, checkpoint: Path) -> torch.nn.Module:
    """Build the network of a config and load all weights of a checkpoint."""
    model = build_model(config)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)
    return model


def agrees(model: torch.nn.Module, other: torch.nn.Module, x: torch.Tensor, bound: float = 1e-5) -> bool:
    """Return whether two networks in eval mode differ by at most a bound, relative to the largest output."""
    with torch.no_grad():
        expected, found = other.eval()(x), model.eval()(x)
    assert expected.std() > 0
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


# Predicts with stock MMDetection, in an interpreter that cannot import mmasr.
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
    """Predict boxes, scores, labels and masks with stock MMDetection, without mmasr.

    Args:
        config (Path): Config of the detector.
        checkpoint (Path): Its weights.
        images (list): Paths or arrays.
        folder (Path): A folder for temporary files.
        python (Path, optional): Interpreter of another environment. Default: this one.

    Returns:
        list[tuple[Tensor, ...]]: Boxes, scores, labels and masks of each image.
    """
    torch.save(images, folder / 'images.pt')
    files = config, checkpoint, folder / 'images.pt', folder / 'predictions.pt'
    if python is None:
        run_python(STOCK, *files).check_returncode()
    else:
        subprocess.run([python, '-c', STOCK, *files], check=True)
    return torch.load(folder / 'predictions.pt')


def write_image_config(folder: Path) -> None:
    """Write eight images in two classes to ``data``, and the config of a classifier to ``config.py``."""
    generator = np.random.default_rng(0)
    for name in range(8):
        path = folder / 'data' / 'ab'[name % 2] / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    flip = "'LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)"
    text = CLASSIFIER.replace('data/shapes', 'data').replace("'LoadImageFromFile')", flip)
    (folder / 'config.py').write_text(text)


@data_only()
def train(work_dir: str, **changes) -> dict[str, torch.Tensor]:
    """Train the config of :func:`write_image_config` in the current folder without validation.

    Args:
        work_dir (str): Folder for its checkpoints.
        **changes: Changes of the config.

    Returns:
        dict[str, Tensor]: The weights.
    """
    config = Config.fromfile('config.py')
    settings = {'work_dir': work_dir, 'train_dataloader.num_workers': 1, 'randomness': {'seed': 3}}
    config.merge_from_dict({**settings, **changes})
    config.pop('val_dataloader'), config.pop('val_cfg'), config.pop('val_evaluator')
    runner = Runner.from_cfg(config)
    runner.train()
    return {key: tensor.clone() for key, tensor in runner.model.state_dict().items()}


class Call:
    """Calls a function when it is unpickled, and becomes the result."""

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
    """Let no file grow beyond a size in bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
