"""No error in folding, writing or the config survives the comparison: a table of errors times networks.

Each test puts one error into the code while a checkpoint is deployed, and expects a refusal.
"""

import functools

import pytest
import torch
from helpers import (
    classifier,
    config_of,
    randomize,
    randomize_norms,
    retinanet,
    save_network,
    segmentor,
    small_detector,
)
from torch import nn

import mmasr
from mmasr.core.bias_fusion import fuse_biases
from mmasr.core.foldable import find_foldable, fold_all
from mmasr.core.merge import branch_ends
from mmasr.core.reparameterization import ParameterReparameterization
from mmasr.deploy import reparameterize as reparam
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError

SE = {'attention': {'type': 'SE'}, 'delta': 2}
RESNET = {'depth': 18, 'base_channels': 8, 'out_indices': (3,), 'norm_eval': False}


def resnet(**training):
    return classifier({'type': 'mmasr.ASRResNet', **RESNET, **training}, 64)


def csp(kind, detector, head, **options):
    """Return the config of a detector with ASR in a CSP backbone."""
    backbone = {'type': f'mmdet.{kind}', 'deepen_factor': 0.33, 'widen_factor': 0.125, **options}
    neck = {
        'type': f'{"CSPNeXtPAFPN" if kind == "CSPNeXt" else "YOLOXPAFPN"}',
        'in_channels': [32, 64, 128],
        'out_channels': 32,
        'num_csp_blocks': 1,
    }
    model = {
        'type': detector,
        'backbone': {'type': 'mmasr.ASRBackbone', 'backbone': backbone, 'asr': SE},
        'neck': neck,
        'bbox_head': {'num_classes': 3, 'in_channels': 32, 'feat_channels': 32, **head},
    }
    return config_of(model, 'mmdet')


def rtmdet():
    head = {
        'type': 'RTMDetSepBNHead',
        'stacked_convs': 1,
        'anchor_generator': {'type': 'MlvlPointGenerator', 'offset': 0, 'strides': [8, 16, 32]},
        'bbox_coder': {'type': 'DistancePointBBoxCoder'},
    }
    return csp('CSPNeXt', 'RTMDet', head, arch='P5', expand_ratio=0.5)


def vit():
    arch = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 64}
    backbone = {'type': 'mmasr.ASRVisionTransformer', 'arch': arch, 'img_size': 64, 'asr': SE}
    config = classifier(backbone, 32, neck=False)
    config.model.head.type = 'VisionTransformerClsHead'
    return config


def repvgg():
    arch = {'num_blocks': [1, 3, 1, 1], 'width_factor': [0.125] * 4, 'group_layer_map': None, 'se_cfg': None}
    return classifier({'type': 'mmasr.ASRRepVGG', 'arch': arch, 'asr': SE}, 64)


PLUGIN = {'cfg': {'type': 'mmasr.ASR', **SE}, 'position': 'after_conv2'}
#: Name -> config with an ASR.
WITH_ASR = {
    'ResNet-20': lambda: classifier({'type': 'mmasr.ASRResNetCIFAR', 'depth': 20, 'asr': SE}, 64),
    'ResNet-18': lambda: resnet(asr=SE),
    'ResNet-18, fp16': lambda: resnet(asr=SE),
    'ResNet-18, bf16': lambda: resnet(asr=SE),
    'ResNet-18, plugins': lambda: resnet(plugins=[PLUGIN]),
    'ViT': vit,
    'Mask R-CNN': lambda: small_detector(asr=SE),
    'RetinaNet': lambda: retinanet({**small_detector(asr=SE).model.backbone, 'norm_eval': False}),
    'RTMDet': rtmdet,
    'YOLOX': lambda: csp('CSPDarknet', 'YOLOX', {'type': 'YOLOXHead', 'stacked_convs': 1}),
    'segmentor': lambda: segmentor({'type': 'mmasr.ASRResNetV1c', 'stem_channels': 8, **RESNET, 'asr': SE}),
}
#: The same with branches.
WITH_BRANCHES = {
    **{
        kind: lambda kind=kind: resnet(convs={'type': kind})
        for kind in ('OREPA', 'ACNet', 'DBB', 'XVolution', 'QARepVGG')
    },
    'RepVGG': repvgg,
}
TYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16}


def as_trained(network):
    """Draw what a wrong fold would change, with values as after training; return the network."""
    randomize_norms(network)
    for module in network.modules():
        if isinstance(module, ParameterReparameterization):
            randomize(module)
        if isinstance(module, mmasr.ASR):
            module.initial.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Return a function that returns the trained checkpoint of a network in the table."""

    @functools.cache
    def made(name):
        if name == 'segmentor':
            pytest.importorskip('mmseg', reason='MMSegmentation is an optional extra')
        path = tmp_path_factory.mktemp('trained') / 'a.pth'
        network = save_network(path, {**WITH_ASR, **WITH_BRANCHES}[name](), as_trained)
        if dtype := TYPES.get(name[-4:]):
            content = torch.load(path)
            content['state_dict'] = network.to(dtype).state_dict()
            torch.save(content, path)
        return path

    return made


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """Deploying runs the networks on images of 64 pixels, which takes a tenth of the time."""
    outputs = reparam.network_outputs
    monkeypatch.setattr(reparam, 'network_outputs', lambda model, images: outputs(model, ((64, 1.0),)))


def refused(path, folder, message=''):
    with pytest.raises(InputError, match=message):
        reparameterize(path, out=folder / 'deployed.pth')
    assert not list(folder.iterdir())


def each(networks, mutations, but=()):
    """Return a decorator for all pairs of a network and a mutation; each network has one process."""
    return pytest.mark.parametrize(
        ('name', 'mutation'),
        [
            pytest.param(name, mutation, marks=pytest.mark.xdist_group(name))
            for name in networks
            for mutation in mutations
            if (name, mutation) not in but
        ],
    )


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in {**WITH_ASR, **WITH_BRANCHES}],
)
def test_without_an_error_each_network_is_deployed(checkpoint, tmp_path, name):
    report = reparameterize(checkpoint(name), out=tmp_path / 'deployed.pth')
    # Products are rounded once, or twice in half precision; kernels are sums of rounded products.
    eps = torch.finfo(TYPES.get(name[-4:], torch.float32)).eps
    assert report.worst_layer.relative <= (8 if name in WITH_BRANCHES else 1) * eps
    assert report.folded or report.merged


def scale(tensors, before, v):
    """Set each tensor of a layer to the trained one times v, which is a function of the right scale."""
    for name, tensor in tensors.items():
        tensor.copy_(before[name] * v(tensor / before[name]))


def swap(layers):
    """Exchange the tensors of two folded layers of the same shapes."""
    shapes = [[(key.rpartition('.')[2], t.shape) for key, t in tensors.items()] for tensors, _ in layers]
    i, j = next((i, j) for j in range(len(shapes)) for i in range(j) if shapes[i] == shapes[j])
    for one, other in zip(layers[i][0].values(), layers[j][0].values(), strict=True):
        one_value = one.clone()
        one.copy_(other)
        other.copy_(one_value)


def channel(factor):
    def change(layers):
        for tensor in layers[-1][0].values():
            tensor[3] *= factor

    return change


def everywhere(change):
    def change_all(layers):
        for tensors, _ in layers:
            for tensor in tensors.values():
                tensor.copy_(change(tensor.clone()))

    return change_all


def unscaled(chosen):
    """Return a mutation that leaves the scale out in some layers, and in one channel or all."""
    layers, channels = chosen

    def change(folded):
        for tensors, before in folded[layers]:
            for name, tensor in tensors.items():
                tensor[channels] = before[name][channels]

    return change


def bias(layers):
    for tensors, before in layers:
        for name in [name for name in tensors if name.endswith('bias')]:
            tensors[name].copy_(before[name])


#: Errors in folding a scale: they change the folded tensors of all layers, each with the trained ones.
IN_THE_SCALE = {
    'no host': unscaled((slice(None), slice(None))),
    'one host': unscaled((slice(1), slice(None))),
    'the last host': unscaled((slice(-1, None), slice(None))),
    'the bias': bias,
    'one channel of one host': unscaled((slice(1), slice(3, 4))),
    'applied twice': lambda layers: [scale(*layer, torch.square) for layer in layers],
    'rolled': lambda layers: [scale(*layer, lambda v: v.roll(1, 0)) for layer in layers],
}
#: Errors in any folded tensor.
IN_A_TENSOR = {
    '1 % in one channel': channel(1.01),
    '10 % in one channel': channel(1.1),
    'swapped between layers': swap,
    'absolute value': everywhere(torch.abs),
    'rounded to half': everywhere(lambda tensor: tensor.half().float()),
}
#: Rounding to float16 is no error in a file of float16, and less than the rounding of bfloat16.
LESS_THAN_ROUNDING = [('ResNet-18, fp16', 'rounded to half'), ('ResNet-18, bf16', 'rounded to half')]


def fold_wrongly(change):
    """Return a fold that then makes an error in the folded tensors."""

    @torch.no_grad()
    def wrong(model, stay):
        found = find_foldable(model)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        names = {module: name for name, module in model.named_modules()}
        places = {
            **found.branches,
            **found.hosts,
            **{names[plugin.norm]: plugin for plugin in found.plugins.values()},
        }
        fold_all(model, stay)
        layers = []
        for place in places:
            kept = before.keys() - {
                name for name, t in model.named_parameters() if not t.equal(before.get(name, t))
            }
            tensors = {
                f'{place}.{name}': tensor
                for name, tensor in model.get_submodule(place).named_parameters()
                if f'{place}.{name}' not in kept
            }
            layers.append((tensors, before))
        change(layers)
        return model

    return wrong


@each(WITH_ASR, [*IN_THE_SCALE, *IN_A_TENSOR], but=LESS_THAN_ROUNDING)
def test_an_error_in_folding_a_scale_is_found(checkpoint, tmp_path, monkeypatch, name, mutation):
    monkeypatch.setattr(reparam, 'fold_all', fold_wrongly({**IN_THE_SCALE, **IN_A_TENSOR}[mutation]))
    refused(checkpoint(name), tmp_path, 'differs from the trained')


#: A scale that is computed wrongly, from the ASR and the right one.
WRONG_SCALES = {
    'halved': lambda asr, v: v / 2,
    'squared': lambda asr, v: v * v,
    'rolled': lambda asr, v: v.roll(1),
    'reversed': lambda asr, v: v.flip(0),
    'its mean': lambda asr, v: v.mean().expand_as(v),
    'one': lambda asr, v: torch.ones_like(v),
    'in half precision': lambda asr, v: v.half().to(v),
    'δ in part': lambda asr, v: asr.attention[0].weights(asr.psi[:1, :, None, None]).flatten() / asr.initial,
    'initial ignored': lambda asr, v: v * asr.initial,
}


@each(WITH_ASR, WRONG_SCALES)
def test_a_scale_that_is_wrong_everywhere_is_found(checkpoint, tmp_path, monkeypatch, name, mutation):
    """The trained network computes it with the same code."""
    right = mmasr.ASR.scale
    monkeypatch.setattr(mmasr.ASR, 'scale', lambda asr: WRONG_SCALES[mutation](asr, right(asr)))
    monkeypatch.setattr(mmasr.ASR, 'batch_key', lambda layer: None)
    refused(checkpoint(name), tmp_path, 'the folded layer .* differs from the trained one')


def norms(block):
    return [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]


def omit(block):
    if 'orepa' in block._modules:
        block.orepa.scale[-1] = 0
    else:
        end = list(branch_ends(block).values())[-1]
        for parameter in end.parameters():
            parameter.zero_()


#: Errors in merging branches: they change a block before its branches are merged.
IN_A_BLOCK = {
    'a branch omitted': omit,
    'statistics not folded': lambda block: [norm.reset_running_stats() for norm in norms(block)],
    'ε ignored': lambda block: [setattr(norm, 'eps', 0) for norm in norms(block)],
}
#: Errors in the merged kernel.
IN_A_KERNEL = {
    'transposed': lambda kernel: kernel.transpose(0, 1).reshape(kernel.shape),
    'flipped': lambda kernel: kernel.flip(2, 3),
    'rolled': lambda kernel: kernel.roll(1, 0),
}
#: OREPA's branches have no normalization.
WITHOUT_NORMS = [('OREPA', 'statistics not folded'), ('OREPA', 'ε ignored')]


@each(WITH_BRANCHES, [*IN_A_BLOCK, *IN_A_KERNEL, *IN_A_TENSOR], but=WITHOUT_NORMS)
def test_an_error_in_merging_branches_is_found(checkpoint, tmp_path, monkeypatch, name, mutation):
    @torch.no_grad()
    def wrong(model, stay):
        blocks = find_foldable(model)
        for block in {**blocks.hosts, **blocks.branches}.values() if mutation in IN_A_BLOCK else ():
            IN_A_BLOCK[mutation](block)
        return fold_all(model, stay)

    def change_kernels(layers):
        everywhere(lambda t: IN_A_KERNEL[mutation](t) if t.dim() == 4 and t.shape[-1] > 1 else t)(layers)

    if mutation in IN_A_KERNEL:
        wrong = fold_wrongly(change_kernels)
    elif mutation in IN_A_TENSOR:
        wrong = fold_wrongly(IN_A_TENSOR[mutation])
    monkeypatch.setattr(reparam, 'fold_all', wrong)
    refused(checkpoint(name), tmp_path, 'the folded network|differs from the trained')


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ('ACNet', 'DBB')]
)
def test_a_bias_that_no_normalization_takes_is_found(checkpoint, tmp_path, monkeypatch, name):
    def lose(model, names, run):
        means = {n: t.clone() for n, t in model.named_buffers() if n.endswith('running_mean')}
        fused = fuse_biases(model, names, run)
        mean = f'{list(fused.values())[-1][0]}.running_mean'
        model.get_buffer(mean).copy_(means[mean])
        return fused

    monkeypatch.setattr(reparam, 'fuse_biases', lose)
    refused(checkpoint(name), tmp_path, r'running_mean of the folded network differs from the trained')


def last_kernel(weights):
    return [key for key, tensor in weights.items() if tensor.dim() == 4 and tensor.shape[-1] > 1][-1]


def from_another_layer(weights):
    keys = [key for key, tensor in weights.items() if tensor.dim() > 1]
    one, other = next((i, j) for i in keys for j in keys if i < j and weights[i].shape == weights[j].shape)
    weights[one], weights[other] = weights[other], weights[one]


def of_another_type(weights):
    key = last_kernel(weights)
    weights[key] = weights[key].to(torch.float16 if weights[key].dtype == torch.float32 else torch.float32)


def in_another_order(weights):
    weights[last_kernel(weights)] = weights[last_kernel(weights)].flip(0)


def one_element(weights):
    kernel = weights[last_kernel(weights)].clone()
    channel = kernel[0].view(-1)
    # A merged kernel is a sum, whose rounding is up to 64 eps; one that is not folded has none.
    channel[channel.abs().argmax()] *= 1 + 100 * torch.finfo(kernel.dtype).eps
    weights[last_kernel(weights)] = kernel


#: Errors in writing the weights, most of them in tensors that are not folded.
IN_THE_FILE = {
    'a tensor from another layer': from_another_layer,
    'a tensor of another type': of_another_type,
    'a tensor in another order': in_another_order,
    'one element': one_element,
}


@each({**WITH_ASR, **WITH_BRANCHES}, IN_THE_FILE)
def test_an_error_in_writing_the_weights_is_found(checkpoint, tmp_path, monkeypatch, name, mutation):
    write = reparam.write_checkpoint

    def wrong(content, path):
        IN_THE_FILE[mutation](content['state_dict'])
        write(content, path)

    monkeypatch.setattr(reparam, 'write_checkpoint', wrong)
    refused(
        checkpoint(name),
        tmp_path,
        'of the folded network (is not the trained tensor|has the shape and|differs)',
    )


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in WITH_ASR])
def test_another_ε_in_the_deployed_network_is_found(checkpoint, tmp_path, monkeypatch, name):
    rebuild = reparam.Origin.rebuild

    def wrong(self, *args):
        rebuilt = rebuild(self, *args)
        for module in rebuilt.model.modules():
            module.__dict__.update({'eps': 1e-2} if 'eps' in module.__dict__ else {})
        return rebuilt

    monkeypatch.setattr(reparam.Origin, 'rebuild', wrong)
    refused(checkpoint(name), tmp_path, 'differs from the trained')


#: Errors in the deployed config: path -> wrong value. Detectors have all of these.
IN_THE_CONFIG = {
    'model.data_preprocessor.mean': [1.0, 2.0, 3.0],
    'model.data_preprocessor.bgr_to_rgb': False,
    'model.data_preprocessor.pad_size_divisor': 64,
    'model.backbone.norm_cfg': {'type': 'BN', 'eps': 1e-3},
    'model.backbone.norm_eval': True,
    'model.neck.start_level': 0,
    'model.rpn_head.anchor_generator.scales': [8],
    'model.rpn_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.bbox_head.anchor_generator.scales': [8],
    'model.bbox_head.bbox_coder': {'type': 'TBLRBBoxCoder'},
    'model.roi_head.bbox_head.reg_class_agnostic': True,
    'model.test_cfg.rcnn.nms.iou_threshold': 0.9,
    'model.test_cfg.score_thr': 0.9,
    'test_pipeline': [{'type': 'LoadImageFromFile'}],
    'test_dataloader.dataset.metainfo.classes': ('b', 'a'),
    'test_evaluator.metric': 'proposal',
    'default_scope': 'mmengine',
}


@each(('Mask R-CNN', 'RetinaNet', 'RTMDet', 'YOLOX', 'ResNet-18', 'segmentor'), IN_THE_CONFIG)
def test_an_error_in_the_config_is_found(checkpoint, tmp_path, monkeypatch, name, mutation):
    make = reparam.deployed_config

    def wrong(*args):
        config = make(*args)
        config.merge_from_dict({mutation: IN_THE_CONFIG[mutation]}, allow_list_keys=True)
        return config

    monkeypatch.setattr(reparam, 'deployed_config', wrong)
    refused(checkpoint(name), tmp_path, r'the deployed config differs from the trained one in ')


def test_other_class_names_in_the_weights_are_found(checkpoint, tmp_path, monkeypatch):
    write = reparam.write_checkpoint

    def wrong(content, path):
        content['meta']['dataset_meta'] = {'classes': ('b', 'a')}
        write(content, path)

    monkeypatch.setattr(reparam, 'write_checkpoint', wrong)
    refused(checkpoint('ResNet-18'), tmp_path, 'the deployed file has other meta data')
