"""Sweep over MMDetection: every kind of re-parameterization in one detector of each family.

A family is a folder of MMDetection's configs. One of its detectors is built with an eighth of the channels
and random weights. Its backbone and neck, where the default sites are, run on a small image in float64. In
float32, deep networks with random weights would need bounds that are too loose to find a small mistake.
"""

import re
from pathlib import Path

import mmdet
import pytest
import torch
from helpers import randomize_norms
from mmdet.models.backbones.trident_resnet import TridentConv
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.core.bias_fusion import fuse_biases
from mmasr.core.foldable import fold_all
from mmasr.core.host import Host
from mmasr.core.reparameterization import BranchReparameterization, resolve
from mmasr.errors import InputError

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
INSTALLED = {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} - {'__pycache__'}
KINDS = 'SE', 'OREPA', 'DBB'  # SE is short for an ASR with it; ACNet replaces the same layers as DBB

#: Family -> config of its detector, or of a tracker or a semi-supervised method around one.
FAMILIES = {
    'albu_example': 'mask-rcnn_r50_fpn_albu-1x_coco',
    'atss': 'atss_r50_fpn_1x_coco',
    'autoassign': 'autoassign_r50-caffe_fpn_1x_coco',
    'boxinst': 'boxinst_r50_fpn_ms-90k_coco',
    'bytetrack': 'bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot20train_test-mot20test',
    'cascade_rcnn': 'cascade-rcnn_r50_fpn_1x_coco',
    'cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco',
    'centernet': 'centernet_r18_8xb16-crop512-140e_coco',
    'centripetalnet': 'centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco',
    'cityscapes': 'faster-rcnn_r50_fpn_1x_cityscapes',
    'clrnet': 'clrnet',
    'condinst': 'condinst_r50_fpn_ms-poly-90k_coco_instance',
    'conditional_detr': 'conditional-detr_r50_8xb2-50e_coco',
    'convnext': 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco',
    'cornernet': 'cornernet_hourglass104_8xb6-210e-mstest_coco',
    'crowddet': 'crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman',
    'dab_detr': 'dab-detr_r50_8xb2-50e_coco',
    'dcn': 'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco',
    'dcnv2': 'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco',
    'ddod': 'ddod_r50_fpn_1x_coco',
    'ddq': 'ddq-detr-4scale_r50_8xb2-12e_coco',
    'deepfashion': 'mask-rcnn_r50_fpn_15e_deepfashion',
    'deepsort': 'deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test',
    'deformable_detr': 'deformable-detr_r50_16xb2-50e_coco',
    'detectors': 'detectors_cascade-rcnn_r50_1x_coco',
    'detr': 'detr_r18_8xb2-500e_coco',
    'dino': 'dino-4scale_r50_8xb2-12e_coco',
    'double_heads': 'dh-faster-rcnn_r50_fpn_1x_coco',
    'dsdl': 'voc07',
    'dyhead': 'atss_r50_fpn_dyhead_1x_coco',
    'dynamic_rcnn': 'dynamic-rcnn_r50_fpn_1x_coco',
    'efficientnet': 'retinanet_effb3_fpn_8xb4-crop896-1x_coco',
    'empirical_attention': 'faster-rcnn_r50-attn1111_fpn_1x_coco',
    'fast_rcnn': 'fast-rcnn_r50_fpn_1x_coco',
    'faster_rcnn': 'faster-rcnn_r50_fpn_1x_coco',
    'fcos': 'fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco',
    'foveabox': 'fovea_r50_fpn_4xb4-1x_coco',
    'fpg': 'retinanet_r50_fpg-chn128_crop640_50e_coco',
    'free_anchor': 'freeanchor_r50_fpn_1x_coco',
    'fsaf': 'fsaf_r50_fpn_1x_coco',
    'gcnet': 'mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco',
    'gfl': 'gfl_r50_fpn_1x_coco',
    'ghm': 'retinanet_r50_fpn_ghm-1x_coco',
    'gn': 'mask-rcnn_r50_fpn_gn-all_2x_coco',
    'gn+ws': 'faster-rcnn_r50_fpn_gn-ws-all_1x_coco',
    'grid_rcnn': 'grid-rcnn_r50_fpn_gn-head_1x_coco',
    'groie': 'faste-rcnn_r50_fpn_groie_1x_coco',
    'guided_anchoring': 'ga-retinanet_r50_fpn_1x_coco',
    'hrnet': 'faster-rcnn_hrnetv2p-w18-1x_coco',
    'htc': 'htc_r50_fpn_1x_coco',
    'instaboost': 'mask-rcnn_r50_fpn_instaboost-4x_coco',
    'lad': 'lad_r50-paa-r101_fpn_2xb8_coco_1x',
    'legacy_1.x': 'retinanet_r50_fpn_1x_coco_v1',
    'libra_rcnn': 'libra-retinanet_r50_fpn_1x_coco',
    'lvis': 'mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1',
    'mask2former': 'mask2former_r50_8xb2-lsj-50e_coco',
    'mask2former_vis': 'mask2former_r50_8xb2-8e_youtubevis2019',
    'mask_rcnn': 'mask-rcnn_r50_fpn_1x_coco',
    'maskformer': 'maskformer_r50_ms-16xb1-75e_coco',
    'masktrack_rcnn': 'masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019',
    'ms_rcnn': 'ms-rcnn_r50_fpn_1x_coco',
    'nas_fcos': 'nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco',
    'nas_fpn': 'retinanet_r50_nasfpn_crop640-50e_coco',
    'objects365': 'retinanet_r50_fpn_1x_objects365v1',
    'ocsort': 'ocsort_yolox_x_8xb4-amp-80e_crowdhuman-mot20train_test-mot20test',
    'openimages': 'retinanet_r50_fpn_32xb2-1x_openimages',
    'paa': 'paa_r50_fpn_1x_coco',
    'pafpn': 'faster-rcnn_r50_pafpn_1x_coco',
    'panoptic_fpn': 'panoptic-fpn_r50_fpn_1x_coco',
    'pascal_voc': 'retinanet_r50_fpn_1x_voc0712',
    'pisa': 'retinanet-r50_fpn_pisa_1x_coco',
    'point_rend': 'point-rend_r50-caffe_fpn_ms-1x_coco',
    'pvt': 'retinanet_pvtv2-b0_fpn_1x_coco',
    'qdtrack': 'qdtrack_faster-rcnn_r50_fpn_4e_base',
    'queryinst': 'queryinst_r50_fpn_1x_coco',
    'regnet': 'faster-rcnn_regnetx-400MF_fpn_ms-3x_coco',
    'reppoints': 'reppoints-moment_r50_fpn_1x_coco',
    'res2net': 'faster-rcnn_res2net-101_fpn_2x_coco',
    'resnest': 'faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco',
    'resnet_strikes_back': 'retinanet_r50-rsb-pre_fpn_1x_coco',
    'retinanet': 'retinanet_r18_fpn_1x_coco',
    'rpn': 'rpn_r50_fpn_1x_coco',
    'rtmdet': 'rtmdet_s_8xb32-300e_coco',
    'sabl': 'sabl-retinanet_r50_fpn_1x_coco',
    'scnet': 'scnet_r50_fpn_1x_coco',
    'scratch': 'faster-rcnn_r50-scratch_fpn_gn-all_6x_coco',
    'seesaw_loss': 'mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1',
    'selfsup_pretrain': 'mask-rcnn_r50-swav-pre_fpn_1x_coco',
    'simple_copy_paste': 'mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-90k_coco',
    'soft_teacher': 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
    'solo': 'solo_r50_fpn_1x_coco',
    'solov2': 'solov2_r50_fpn_1x_coco',
    'sort': 'sort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test',
    'sparse_rcnn': 'sparse-rcnn_r50_fpn_1x_coco',
    'ssd': 'ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
    'strong_baselines': 'mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-50e_coco',
    'strongsort': 'strongsort_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test',
    'swin': 'retinanet_swin-t-p4-w7_fpn_1x_coco',
    'timm_example': 'retinanet_timm-efficientnet-b1_fpn_1x_coco',
    'tood': 'tood_r50_fpn_1x_coco',
    'tridentnet': 'tridentnet_r50-caffe_1x_coco',
    'v3det': 'dino-4scale_r50_8xb2_sample1e-3_v3det_36e',
    'vfnet': 'vfnet_r50_fpn_1x_coco',
    'wider_face': 'retinanet_r50_fpn_1x_widerface',
    'yolact': 'yolact_r50_1xb8-55e_coco',
    'yolo': 'yolov3_mobilenetv2_8xb24-320-300e_coco',
    'yolof': 'yolof_r50-c5_8xb8-1x_coco',
    'yolox': 'yolox_s_8xb8-300e_coco',
}

#: Family -> why none of its detectors is tested.
LEFT_OUT = {
    '_base_': 'parts of configs',
    'common': 'data and schedules, no model',
    'carafe': 'CARAFE runs on a GPU only',
    **dict.fromkeys(
        ('glip', 'grounding_dino', 'mm_grounding_dino'), 'needs transformers, and downloads BERT'
    ),
    'ld': 'finds the config of its teacher only in a clone of MMDetection',
    'misc': 'needs the package detectron2',
    'reid': 're-identification, no detector',
}

#: Kind -> families without a default site, and the message. ASR does not know these networks. DBB
#: replaces a plain nn.Conv2d, not one with weight standardization.
WITHOUT_SITES = {
    'SE': ({'pvt', 'swin'}, 'is not a network with known sites'),
    'DBB': ({'gn+ws'}, 'has no 3 x 3 convolution'),
}
#: Family -> parts with a GroupNorm after convolutions, which therefore keep the bias of merged branches.
GROUP_NORM = {
    **dict.fromkeys(('gn', 'scratch'), ('backbone', 'neck')),
    **dict.fromkeys(('ddq', 'deformable_detr', 'dino', 'v3det'), ('neck',)),
}
#: Families whose backbone has no option for its number of channels.
WIDE_BACKBONE = {'convnext', 'efficientnet', 'regnet', 'timm_example', 'yolo'}
#: Families whose neck repeats channels of such a backbone.
WIDE = {'ssd'}
#: Sizes of images in pixels, where 64 are too few for the smallest feature map.
SIZES = {'dcn': 128, 'detectors': 128, 'fpg': 128, 'nas_fpn': 128}

#: Options that are numbers of channels or factors of them.
WIDTHS = re.compile('channels|planes|filters|embed_dims|num_feats|in_dim|hidden_dim|num_groups|widen_factor')
RESNETS = {'ResNet', 'ResNetV1d', 'ResNeSt', 'Res2Net', 'DetectoRS_ResNet', 'TridentResNet'}

#: (Config of a backbone and a neck, kind) -> sites, for each combination that has been checked.
CHECKED = {}


def narrow(value, by, name=''):
    """Return a part of a config with fewer channels, with ResNet-50 for ResNet-101, and without weights."""
    if isinstance(value, dict):
        for key in ('pretrained', 'init_cfg', 'teacher_ckpt', 'data_preprocessor'):
            value.pop(key, None)
        for key in value:
            value[key] = narrow(value[key], by, key)
        if value.get('type') in RESNETS:
            value.update(base_channels=64 // by, depth=min(value.depth, 50))
        if value.get('type') == 'Res2Net':
            value.base_width = 4
    elif isinstance(value, list | tuple):
        return type(value)(narrow(element, by, name) for element in value)
    elif WIDTHS.search(name) and isinstance(value, float):
        return value / by
    elif WIDTHS.search(name) and isinstance(value, int) and value >= 32 and value % by == 0:
        return value // by
    return value


def build(family):
    """Return the config of a family's backbone and neck as a text, and the small detector in float64."""
    config = Config.fromfile(CONFIGS / family / f'{FAMILIES[family]}.py').model
    config = config.get('detector', config)
    channels = config.neck.in_channels if family in WIDE_BACKBONE else None
    narrow(config, by=1 if family in WIDE else 8)
    if channels:
        config.neck.in_channels = channels
    body = repr([config.backbone, config.get('neck')])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, TridentConv):  # its weight is not initialized
            nn.init.kaiming_normal_(module.weight)
    # ConvAWS of DetectoRS takes its scale from weights that come without one.
    weights = {name: tensor for name, tensor in model.state_dict().items() if 'weight_gamma' not in name}
    model.load_state_dict(weights, strict=False)
    return body, randomize_norms(model).double()


@torch.no_grad()
def features(model, x):
    """Return the feature maps after backbone and neck."""
    maps = model.backbone(x)
    maps = model.neck(maps) if getattr(model, 'neck', None) else maps
    assert all(feature.isfinite().all() and feature.std() > 0 for feature in maps)
    return maps


def difference(maps, others):
    """Return the largest difference of feature maps, relative to the largest value in each map."""
    return max((a - b).abs().max() / b.abs().max() for a, b in zip(maps, others, strict=True))


def parameters(model):
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def check(family, model, kind):
    """Attach one kind, check start and fold, and return the sites; the detector is a stock one afterwards."""
    x = torch.randn(1, 3, *[SIZES.get(family, 64)] * 2, dtype=torch.float64)
    stock, stock_parameters = features(model, x), parameters(model)
    types = [type(module) for module in model.modules()]

    mmasr.attach(model, {'type': kind, 'init_identity': True})
    sites = {name: m for name, m in model.named_modules() if isinstance(m, Host | BranchReparameterization)}
    ran = set()
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: ran.add(module))
    start = features(model, x)
    hook.remove()
    assert ran.issuperset(sites.values())
    # ASR and DBB compute the number that cancels their initial scale in float32.
    assert difference(start, stock) <= (1e-12 if kind == 'OREPA' else 1e-5)
    for site in sites.values():
        part = site.reparameterization() if isinstance(site, Host) else site
        for tensor in part.state_dict().values():
            if tensor.is_floating_point():  # little enough for deep networks
                tensor.add_(torch.rand_like(tensor) - 0.5, alpha=0.4 / tensor[0].numel() ** 0.5)
    trained = features(model, x)
    assert difference(trained, start) > 1e-6
    fold_all(model)  # the biases are fused below
    assert difference(features(model, x), trained) <= 1e-11
    assert [type(module) for module in model.modules()] == types

    biased = {
        name for name, m in sites.items() if isinstance(m, BranchReparameterization) and not m.stock_bias
    }
    kept = {name for name in biased if name.startswith(GROUP_NORM.get(family, ()))}
    if biased - kept:
        fuse_biases(model, sorted(biased - kept), lambda: features(model, x))
        assert difference(features(model, x), trained) <= 1e-11
    assert parameters(model).keys() - stock_parameters.keys() == {f'{name}.bias' for name in kept}
    for name in kept:
        model.get_submodule(name).bias = None
    assert parameters(model) == stock_parameters
    return set(sites)


def test_every_family_is_tested_or_left_out():
    assert len(INSTALLED) > 100
    assert FAMILIES.keys() | LEFT_OUT.keys() >= INSTALLED
    assert not FAMILIES.keys() & LEFT_OUT.keys()


@pytest.mark.xdist_group('detector families')  # which share what has been checked
@pytest.mark.parametrize('family', sorted(FAMILIES.keys() & INSTALLED))  # MMDetection 3.3 lacks clrnet
def test_a_family(family, process_group):  # which mmcv's SyncBatchNorm needs
    body, model = build(family)
    for kind in KINDS:
        unknown, message = WITHOUT_SITES.get(kind, ((), None))
        if family in unknown:
            with pytest.raises(InputError, match=f'^{type(model).__name__} {message}; pass sites='):
                mmasr.attach(model, {'type': kind})
        elif (body, kind) in CHECKED:
            assert set(resolve({'type': kind})[0].default_sites(model)) == CHECKED[body, kind]
        else:
            CHECKED[body, kind] = check(family, model, kind)
