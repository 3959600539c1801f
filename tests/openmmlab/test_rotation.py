"""MMRotate: a detector of rotated boxes with ASR deploys as a stock detector."""

import pytest
from helpers import randomize, save_network
from mmengine.config import Config

from mmasr.deploy.reparameterize import reparameterize

pytest.importorskip('mmrotate', reason='MMRotate is optional, and not part of the tested environments')
BASE = 'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
SMALL = """
custom_imports = dict(imports=['mmasr', 'mmrotate'])
model = dict(
    backbone=dict(
        type='mmasr.ASRResNet', depth=18, base_channels=8, init_cfg=None, asr=dict(attention=dict(type='SE'))
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
"""


def test_a_detector_of_rotated_boxes_deploys(tmp_path):
    config = Config.fromstring(f'_base_ = {BASE!r}{SMALL}', '.py')
    save_network(tmp_path / 'a.pth', config, randomize)
    report = reparameterize(tmp_path / 'a.pth', trust_imports=True)  # the allow-list lacks MMRotate
    assert len(report.folded) == 8
    assert max(difference.absolute for difference in report.differences) == 0
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert deployed.custom_imports.imports == ['mmrotate']
