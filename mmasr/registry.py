"""mmasr's registries, children of mmengine's, so that any config can name ``mmasr.ASRResNet``."""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from .convolutions.acnet import build_acnet

#: Backbones and plugins; imported at the first look-up, since they need mmcv and mmdet.
MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmasr', locations=['mmasr.openmmlab.plugins', 'mmasr.openmmlab.backbones']
)

#: Imported at the first look-up too, since it needs matplotlib.
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmasr', locations=['mmasr.stripes.hook'])

#: Imported at the first look-up, since it needs mmpretrain.
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmasr', locations=['mmasr.openmmlab.datasets'])

# mmcv looks up convolutions by their bare name: conv_cfg=dict(type='ACNet').
MMENGINE_MODELS.register_module(name='ACNet', module=build_acnet)
