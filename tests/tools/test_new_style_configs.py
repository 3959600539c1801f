"""All tools take configs of mmengine's new style: types are classes, and there is no default scope."""

import pytest
from helpers import run_tool
from mmengine.config import Config

BASE = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD

default_scope = None
dataset = dict(
    type=CocoDataset, data_root='data/shapes/', metainfo=dict(classes=('circle', 'square', 'triangle'))
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=[
            dict(type=LoadImageFromFile),
            dict(type=LoadAnnotations, with_bbox=True),
            dict(type=RandomFlip, prob=0.5),
            dict(type=PackDetInputs),
        ],
    ),
)
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(64, 64)),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file='data/shapes/val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(
    type=OptimWrapper, constructor=DefaultOptimWrapperConstructor, optimizer=dict(type=SGD, lr=0.01)
)
default_hooks = dict(checkpoint=dict(type=CheckpointHook), visualization=dict(type=DetVisualizationHook))
visualizer = dict(type=DetLocalVisualizer, vis_backends=None)
"""

CONFIG = """
from mmengine.config import read_base

with read_base():
    from .base import *

from mmdet.models import FPN, DetDataPreprocessor, FocalLoss, L1Loss, RetinaHead, RetinaNet
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from mmcv.ops import nms
from torch.nn import BatchNorm2d

from mmasr.attention import SE
from mmasr.convolutions import OREPA
from mmasr.openmmlab.backbones.resnet import ASRResNet
from mmasr.openmmlab.plugins import ECAPlugin

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[128] * 3, std=[64] * 3),
    backbone=dict(
        type=ASRResNet,
        depth=50,
        base_channels=8,
        norm_cfg=dict(type=BatchNorm2d),
        asr=dict(attention=dict(type=SE)),
        convs=dict(type=OREPA, sites=['layer1.0.conv1']),
        plugins=[dict(cfg=dict(type=ECAPlugin), position='after_conv2')],
    ),
    neck=dict(type=FPN, in_channels=[32, 64, 128, 256], start_level=1, out_channels=16, num_outs=3),
    bbox_head=dict(
        type=RetinaHead,
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(type=AnchorGenerator, scales=[4], ratios=[1.0], strides=[8, 16, 32]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss),
        loss_bbox=dict(type=L1Loss),
    ),
    train_cfg=dict(
        assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type=PseudoSampler),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=10),
)
"""


DEPLOYED = """
from mmengine.config import read_base

with read_base():
    from .new import *

from mmdet.models import ResNet

del model['backbone']['asr'], model['backbone']['convs']
model['backbone']['type'] = ResNet
"""


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    """Provide the config and the checkpoint of a training that tools/train.py ran."""
    folder = tmp_path_factory.mktemp('new')
    (folder / 'base.py').write_text(BASE)
    (folder / 'new.py').write_text(CONFIG)
    (folder / 'deployed.py').write_text(DEPLOYED)
    succeed('train.py', folder / 'new.py', '--work-dir', folder / 'work', cwd=shapes)
    return folder / 'new.py', folder / 'work/epoch_1.pth'


def succeed(*arguments, cwd):
    result = run_tool(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize('form', ['embedded', 'file'])
def test_a_network_is_deployed_and_exported(trained, shapes, tmp_path, form):
    config, checkpoint = trained
    deployed = tmp_path / 'new_deployed.pth'
    options = ['--config', config] if form == 'file' else []
    succeed('reparam.py', checkpoint, '--out', deployed, *options, cwd=shapes)
    model = Config.fromfile(deployed.with_suffix('.py')).model
    assert (model.type, model.backbone.type) == ('mmdet.RetinaNet', 'mmdet.ResNet')
    assert model.backbone.plugins[0].cfg.type == 'mmasr.ECA'  # it depends on the image, so it remains
    assert not {'asr', 'convs'} & model.backbone.keys()
    succeed('test.py', deployed.with_suffix('.py'), deployed, cwd=shapes)
    options = ['--config', config.with_name('deployed.py')] if form == 'file' else []
    succeed('export.py', deployed, '--out', tmp_path / 'a.onnx', *options, cwd=shapes)
    assert (tmp_path / 'a.onnx').exists()


def test_images_are_drawn(trained, shapes, tmp_path):
    succeed('test.py', *trained, '--work-dir', tmp_path / 'work', '--show-dir', 'drawn', cwd=shapes)
    assert len(list(tmp_path.glob('work/*/drawn/*.png'))) == 4


def test_stripes_are_measured(trained, shapes, tmp_path):
    succeed('stripes.py', *trained, '--images', 2, '--out', tmp_path / 'stripes', cwd=shapes)
    assert 'CocoDataset' in (tmp_path / 'stripes/stripes.json').read_text()
