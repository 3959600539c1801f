"""The check of deployed configs: what may differ from the trained config, and what may not."""

import copy

import pytest
from helpers import classifier, plugin, save_network
from mmengine.config import Config

from mmasr.deploy import reparameterize as deployment
from mmasr.deploy.config_check import check_deployed_config
from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

BACKBONE = {
    'type': 'mmasr.ASRResNet',
    'depth': 50,
    'asr': {'attention': {'type': 'SE'}},
    'plugins': [plugin('ASR', 'after_conv2'), plugin('SE'), plugin('ECA')],
    'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'},
}
HEAD = {
    'type': 'RPNHead',
    'anchor_generator': {'type': 'AnchorGenerator', 'scales': [8], 'ratios': [0.5, 1.0, 2.0]},
    'bbox_coder': {'type': 'DeltaXYWHBBoxCoder', 'target_stds': [1.0, 1.0, 1.0, 1.0]},
}
TRAINED = Config(
    {
        'default_scope': 'mmdet',
        'custom_imports': {'imports': ['mmasr']},
        'model': {
            'type': 'RPN',
            'data_preprocessor': {'type': 'DetDataPreprocessor', 'mean': [1.0, 2.0, 3.0], 'bgr_to_rgb': True},
            'backbone': BACKBONE,
            'rpn_head': HEAD,
            'test_cfg': {'rpn': {'nms_pre': 1000, 'nms': {'type': 'nms', 'iou_threshold': 0.7}}},
        },
        'test_dataloader': {
            'batch_size': 1,
            'dataset': {
                'type': 'CocoDataset',
                'metainfo': {'classes': ('a', 'b')},
                'pipeline': [{'type': 'Resize', 'scale': (1333, 800)}],
            },
        },
        'test_evaluator': {'type': 'CocoMetric', 'metric': 'bbox'},
    }
)


def deployed(config=TRAINED):
    return deployed_config(config).to_dict()


def test_the_changes_by_rule_are_listed():
    assert check_deployed_config(TRAINED.to_dict(), deployed()) == [
        f'model.backbone.{name}' for name in ('type', 'asr', 'plugins', 'init_cfg')
    ]


@pytest.mark.parametrize(
    'backbone',
    [
        {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'ResNet', 'depth': 18}, 'convs': {'type': 'DBB'}},
        {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'mmpretrain.RepVGG', 'arch': 'A0'}, 'sites': 'x'},
        {'type': 'mmasr.ASRResNet', 'depth': 18, 'convs': {'type': 'XVolution', 'init_identity': True}},
        {'type': 'mmasr.ASRRepVGG', 'arch': 'A0', 'asr': {'attention': {'type': 'SE'}}},
        {'type': 'ResNet', 'depth': 18},
    ],
    ids=['wrapped', 'wrapped RepVGG', 'dynamic convolutions', 'RepVGG', 'stock'],
)
def test_the_deployed_form_of_every_backbone_is_accepted(backbone):
    config = copy.deepcopy(TRAINED)
    config.model.backbone = backbone
    check_deployed_config(config.to_dict(), deployed(config))


#: A part of the deployed config, and another value.
CHANGES = {
    'model.data_preprocessor.mean': [1.0, 2.0, 3.5],
    'model.data_preprocessor.bgr_to_rgb': False,
    'model.rpn_head.anchor_generator.scales': [4],
    'model.rpn_head.anchor_generator.type': 'YOLOAnchorGenerator',
    'model.rpn_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.test_cfg.rpn.nms.iou_threshold': 0.5,
    'model.backbone.depth': 101,
    'model.backbone.type': 'mmdet.ResNeXt',
    'model.backbone.frozen_stages': 2,
    'model.type': 'FasterRCNN',
    'test_dataloader.dataset.metainfo.classes': ('b', 'a'),
    'test_dataloader.dataset.pipeline': [{'type': 'Resize', 'scale': (800, 1333)}],
    'test_evaluator.metric': 'segm',
    'default_scope': 'mmpretrain',
}


@pytest.mark.parametrize('name', CHANGES)
def test_any_other_change_is_refused_by_name(name):
    changed = Config(deployed())
    changed.merge_from_dict({name: CHANGES[name]})
    with pytest.raises(InputError, match=f'differs from the trained one in {name}'):
        check_deployed_config(TRAINED.to_dict(), changed.to_dict())


@pytest.mark.parametrize(
    'plugins',
    [[plugin('ECA'), plugin('SE')], [plugin('SE'), plugin('ECA', ratio=4)], [plugin('SE', 'after_conv1')]],
    ids=['order', 'options', 'position'],
)
def test_plugins_may_only_be_removed(plugins):
    config = copy.deepcopy(TRAINED)
    config.model.backbone.plugins = [
        plugin('SE'),
        {'cfg': {'type': 'ContextBlock'}, 'position': 'after_conv3'},
    ]
    changed = {**deployed(config)}
    changed['model']['backbone']['plugins'] = plugins
    with pytest.raises(InputError, match=r'model\.backbone\.plugins'):
        check_deployed_config(config.to_dict(), changed)


def test_a_missing_part_is_refused():
    changed = deployed()
    del changed['model']['rpn_head']
    with pytest.raises(InputError, match=r'model\.rpn_head'):
        check_deployed_config(TRAINED.to_dict(), changed)


def test_a_deployed_config_that_differs_is_not_written(tmp_path, monkeypatch):
    backbone = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'out_indices': (3,)}
    config = classifier({**backbone, 'asr': {'attention': {'type': 'SE'}}}, 64)
    save_network(tmp_path / 'a.pth', config)

    def with_another_pooling(*args):
        result = deployed_config(*args)
        result.model.neck = {'type': 'GlobalAveragePooling', 'dim': 2}  # the default, which changes nothing
        return result

    monkeypatch.setattr(deployment, 'deployed_config', with_another_pooling)
    with pytest.raises(InputError, match=r'differs from the trained one in model\.neck\.dim'):
        reparameterize(tmp_path / 'a.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
