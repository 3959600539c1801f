"""Tests with other libraries: the code of docs/anywhere.md, on small networks that replace the downloads."""

import copy
import json
import re
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers import ROOT
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

import mmasr

LINES = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/anywhere.md').read_text(), re.DOTALL)


def import_or_skip(package):
    return pytest.importorskip(package, reason=f'{package} is not installed; it is not a dependency')


def code_with(part):
    """Return the block of code on the page that contains a text."""
    (found,) = [found for found in LINES if part in found]
    return found


def flat(output):
    """Return all numbers in the output of a network as one vector."""
    if isinstance(output, torch.Tensor):
        return output.flatten().float()
    parts = output.values() if isinstance(output, dict) else output
    return torch.cat([flat(part) for part in parts if part is not None])


def asrs(model):
    return [module for module in model.modules() if isinstance(module, mmasr.ASR)]


class Training:
    """Replacement for ``train`` on the page: a few steps, then it records the network's output and sites."""

    def __init__(self, loss, output):
        self.loss, self.output = loss, output

    def __call__(self, model):
        self.steps(model)
        with torch.no_grad():
            self.expected = self.output(model.eval())
        self.sites = [
            name.removesuffix('.asr')
            for name, module in model.named_modules()
            if isinstance(module, mmasr.ASR)
        ]
        for asr in asrs(model):  # with init_identity it starts at 1
            assert (asr.scale() - 1).abs().max() > 1e-3

    def steps(self, model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            self.loss(model).backward()
            optimizer.step()

    def check(self, model, stock):
        """Check that a folded network has stock classes, and that the stock network computes its output."""
        assert [type(module) for module in model.modules()] == [type(module) for module in stock.modules()]
        with torch.no_grad():
            found = self.output(stock.eval())
        # Folding writes the parameters that ran, but a library may sum in another order.
        assert (found - self.expected).abs().max() <= 1e-5 * self.expected.abs().max()


def mask_rcnn(weights):
    """Build a narrow Mask R-CNN as torchvision does if it loads weights."""
    body = ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=FrozenBatchNorm2d, width_per_group=8)
    layers = {f'layer{stage}': str(stage) for stage in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 16)
    small = {
        'min_size': 64,
        'max_size': 64,
        'rpn_post_nms_top_n_train': 10,
        'box_head': TwoMLPHead(16 * 7 * 7, 32),
    }
    return MaskRCNN(
        backbone,
        **small,
        box_predictor=FastRCNNPredictor(32, 3),
        mask_head=MaskRCNNHeads(16, [16], 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 3),
    )


@pytest.mark.parametrize('kind', ['SE', 'OREPA'])
def test_torchvisions_detectors(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models.detection, 'maskrcnn_resnet50_fpn', mask_rcnn)
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    boxes = torch.tensor([[5.0, 5, 40, 40], [20, 20, 60, 60]])
    targets = [
        {'boxes': boxes, 'labels': torch.tensor([1, 2]), 'masks': torch.ones(2, 64, 64, dtype=torch.uint8)}
    ] * 2

    def heads(model):  # an untrained detector finds nothing
        features = model.backbone(torch.stack(images))
        return flat([features, model.rpn.head(list(features.values()))])

    train = Training(lambda model: sum(model(images, targets).values()), heads)
    page = code_with('torchvision')
    names = {'train': train}
    exec(page if kind == 'SE' else re.sub(r"'SE'\), sites=r'.*?'", "'OREPA')", page), names)
    if kind == 'SE':
        assert train.sites == [f'backbone.body.layer{stage}.0.conv3' for stage in (1, 2, 3, 4)]
    stock = mask_rcnn(None)
    stock.load_state_dict(torch.load('maskrcnn.pth'), strict=True)
    train.check(names['model'], stock)


@pytest.mark.parametrize(
    ('name', 'options', 'sites'),
    [
        ('resnet10t', {}, ['layer1.0.bn2', 'layer2.0.bn2', 'layer3.0.bn2', 'layer4.0.bn2']),
        (
            'resnet10t',
            {'features_only': True},
            ['layer1.0.bn2', 'layer2.0.bn2', 'layer3.0.bn2', 'layer4.0.bn2'],
        ),
        (
            'test_vit',
            {'img_size': 64},
            [f'blocks.{i}.{part}' for i in range(6) for part in ('attn.proj', 'mlp.fc2')],
        ),
        (
            'test_convnext',
            {'features_only': True},
            [f'stages_{i}.blocks.{j}.mlp.fc2' for i in range(4) for j in range((1, 2, 4, 2)[i])],
        ),
    ],
)
def test_timm(name, options, sites, tmp_path, monkeypatch):
    def make(_, pretrained):
        return create_model(name, **options)

    create_model = timm.create_model
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, 'create_model', make)
    x = torch.rand(2, 3, 64, 64)
    train = Training(lambda model: flat(model(x)).square().mean(), lambda model: flat(model(x)))
    names = {'train': train}
    exec(code_with('timm'), names)
    assert train.sites == sites
    stock = make(name, False)
    stock.load_state_dict(torch.load('resnet50.pth'), strict=True)
    train.check(names['model'], stock)


@pytest.mark.parametrize(
    ('encoder', 'sites'),
    [
        ('resnet18', [f'encoder.layer{stage}.{block}.bn2' for stage in (1, 2, 3, 4) for block in (0, 1)]),
        ('efficientnet-b0', [f'encoder._blocks.{block}._bn{norm}' for block in range(16) for norm in (1, 2)]),
    ],
)
def test_segmentation_models_pytorch(encoder, sites, tmp_path, monkeypatch):
    smp = import_or_skip('segmentation_models_pytorch')

    def make(_, encoder_weights, classes):
        return unet(encoder, encoder_weights=None, classes=classes)

    unet = smp.Unet
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smp, 'Unet', make)
    x, y = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    train = Training(lambda model: nn.functional.cross_entropy(model(x), y), lambda model: flat(model(x)))
    names = {'train': train}
    exec(code_with('segmentation_models_pytorch'), names)
    assert train.sites == sites
    stock = make(encoder, None, 3)
    stock.load_state_dict(torch.load('unet.pth'), strict=True)
    train.check(names['model'], stock)


class ByTrainer(Training):
    """Training by the Trainer of transformers."""

    def __init__(self, output, images, labels):
        super().__init__(None, output)
        self.data = [
            {'pixel_values': image, 'labels': label} for image, label in zip(images, labels, strict=True)
        ]

    def steps(self, model):
        from transformers import Trainer, TrainingArguments

        options = {
            'report_to': 'none',
            'disable_tqdm': True,
            'save_strategy': 'no',
            'use_cpu': True,
            'learning_rate': 1e-2,
        }
        Trainer(
            model,
            TrainingArguments('trainer', max_steps=3, per_device_train_batch_size=2, **options),
            data_collator=lambda data: {
                'pixel_values': torch.stack([one['pixel_values'] for one in data]),
                'labels': [one['labels'] for one in data],
            },
            train_dataset=self.data,
        ).train()


def detr(transformers):
    backbone = {'backbone': 'resnet14t', 'use_timm_backbone': True, 'use_pretrained_backbone': False}
    layers = {
        f'{part}_{name}': n for part in ('encoder', 'decoder') for name, n in (('layers', 1), ('ffn_dim', 32))
    }
    config = transformers.DetrConfig(d_model=16, num_queries=5, num_labels=3, **backbone, **layers)
    model = transformers.DetrForObjectDetection(config)
    for name, value in model.named_buffers():  # timm starts them at 0, so convolutions would get no gradient
        if name.endswith('bn3.weight'):
            value.fill_(0.5)
    return model


def rt_detr(transformers):
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 32, 32, 32],
        depths=[1, 1, 1, 1],
        out_features=['stage2', 'stage3', 'stage4'],
    )
    sizes = {
        'd_model': 16,
        'encoder_hidden_dim': 16,
        'encoder_ffn_dim': 32,
        'decoder_ffn_dim': 32,
        'decoder_layers': 1,
    }
    return transformers.RTDetrForObjectDetection(
        transformers.RTDetrConfig(
            backbone_config=backbone,
            encoder_in_channels=[32, 32, 32],
            decoder_in_channels=[16, 16, 16],
            feat_strides=[8, 16, 32],
            num_queries=10,
            num_denoising=4,
            num_labels=3,
            **sizes,
        )
    )


@pytest.mark.parametrize(
    ('name', 'make', 'folder', 'site'),
    [
        ('DetrForObjectDetection', detr, 'detr', 'model.backbone.model.layer{}.0.conv3'),
        (
            'RTDetrForObjectDetection',
            rt_detr,
            'rtdetr',
            'model.backbone.model.encoder.stages.{}.layers.0.layer.2.convolution',
        ),
    ],
    ids=['DETR', 'RT-DETR'],
)
@pytest.mark.parametrize('part', ['backbone', 'encoder'])
def test_transformers(name, make, folder, site, part, tmp_path, monkeypatch):
    transformers = import_or_skip('transformers')
    if folder == 'detr':
        import_or_skip('accelerate')  # its Trainer needs it
    monkeypatch.chdir(tmp_path)
    cls = getattr(transformers, name)
    images = torch.rand(2, 3, 64, 64)
    labels = [
        {
            'class_labels': torch.tensor([0, 2]),
            'boxes': torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]]),
        }
    ] * 2

    def output(model):
        found = model(pixel_values=images)
        return flat([found.logits, found.pred_boxes])

    train = Training(lambda model: model(pixel_values=images, labels=labels).loss, output)
    if folder == 'detr':
        train = ByTrainer(output, images, labels)
    page, names = code_with(f'import {name}'), {'train': train}
    if part == 'encoder':
        there = re.findall(r"r'.*'", code_with('o_proj'))[folder == 'rtdetr']
        page = re.sub(r"r'.*'", lambda _: there, page)
    with monkeypatch.context() as patch:
        patch.setattr(cls, 'from_pretrained', lambda _: make(transformers))
        exec(page, names)
    if part == 'backbone':
        assert train.sites == [site.format(stage + (folder == 'detr')) for stage in range(4)]
    else:
        assert [site.rpartition('.')[2] for site in train.sites] == ['o_proj', 'fc2']
    stock, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not report['missing_keys']
    assert not report['unexpected_keys']
    train.check(names['model'], stock)


def write_yolo_shapes(folder):
    """Write the shapes dataset in the format of ultralytics."""
    from mmasr.experiments.shapes import CLASSES, write_shapes

    write_shapes(folder, train=16, val=4, size=64)
    for split in ('train', 'val'):
        content = json.loads((folder / f'{split}.json').read_text())
        for image in content['images']:
            path = folder / 'labels' / split / f'{Path(image["file_name"]).stem}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            boxes = [
                (a['category_id'] - 1, *a['bbox'])
                for a in content['annotations']
                if a['image_id'] == image['id']
            ]
            path.write_text(
                ''.join(
                    f'{c} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}\n'
                    for c, x, y, w, h in boxes
                )
            )
    (folder / 'images').mkdir()
    for split in ('train', 'val'):
        (folder / split).rename(folder / 'images' / split)
    Path('shapes.yaml').write_text(
        f'path: {folder}\ntrain: images/train\nval: images/val\nnames: {dict(enumerate(CLASSES))}\n'
    )


def test_ultralytics(tmp_path, monkeypatch):
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(tmp_path))  # importing it writes settings
    monkeypatch.setenv('YOLO_OFFLINE', 'true')
    yolo = import_or_skip('ultralytics').YOLO
    monkeypatch.chdir(tmp_path)
    write_yolo_shapes(tmp_path / 'shapes')
    pretrained = yolo('yolov8n.yaml', verbose=False)
    pretrained.save('yolov8n.pt')
    x, seen = torch.rand(2, 3, 64, 64), {}
    small = {
        'imgsz': 64,
        'batch': 4,
        'nbs': 4,
        'workers': 0,
        'device': 'cpu',
        'plots': False,
        'verbose': False,
    }
    small |= {
        'optimizer': 'AdamW',
        'lr0': 1e-2,
        'warmup_epochs': 0,
        'save_period': 1,
        'project': str(tmp_path),
        'name': 'run',
    }

    def output(model):
        with torch.no_grad():
            return flat(model.eval()(x)[0])

    def start(trainer):
        seen['start'] = copy.deepcopy(trainer.model)

    def go(model, trainer, data, epochs):
        model.add_callback('on_pretrain_routine_end', start)
        train(model, trainer=trainer, data=data, epochs=2, **small)
        seen['trained'] = copy.deepcopy(model.model)

    train = yolo.train
    names = {}
    with monkeypatch.context() as patch:
        patch.setattr(yolo, 'train', go)
        exec(code_with('ultralytics'), names)

    before, trained = seen['start'], seen['trained']
    # It has the pretrained weights, in the half precision of their file.
    assert torch.equal(before.model[0].conv.weight.half(), pretrained.model.model[0].conv.weight.half())
    assert all(asr.scale().eq(1).all() for asr in asrs(before))
    sites = [
        name.removesuffix('.asr') for name, module in trained.named_modules() if isinstance(module, mmasr.ASR)
    ]
    assert sites == [
        f'model.{stage}.m.{i}.cv2.bn'
        for stage, blocks in ((2, 1), (4, 2), (6, 2), (8, 1))
        for i in range(blocks)
    ]
    assert all((asr.scale() - 1).abs().max() > 1e-3 for asr in asrs(trained))

    expected = output(trained)
    with zipfile.ZipFile('yolov8n_asr.pt') as archive:  # loading it does not need mmasr
        assert not [member for member in archive.namelist() if b'mmasr' in archive.read(member)]
    loaded = yolo('yolov8n_asr.pt').model
    # As the trainer of ultralytics builds it.
    stock = type(pretrained.model)('yolov8n.yaml', nc=3, verbose=False)
    stock.load(pretrained.model, verbose=False)
    assert [type(module) for module in loaded.modules()] == [type(module) for module in stock.modules()]
    stock.load_state_dict(names['model'].model.state_dict(), strict=True)
    # The folded network computes the trained output; ultralytics saves files in half precision.
    assert (output(stock) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (output(loaded) - expected).abs().max() <= 1e-2 * expected.abs().max()
    fused = copy.deepcopy(trained).fuse(verbose=False)
    assert not [name for name, _ in fused.named_modules() if name.endswith(('bn', 'asr'))]
    assert (output(fused) - expected).abs().max() <= 1e-4 * expected.abs().max()  # other rounding

    # A resumed training continues with its ASRs.
    resumed = yolo('run/weights/epoch0.pt')
    resumed.add_callback('on_pretrain_routine_end', start)
    had = [asr.psi.clone() for asr in asrs(resumed.model)]
    resumed.train(resume=True, trainer=names['ASRTrainer'])
    assert len(had) == 6
    for psi, asr in zip(had, asrs(seen['start']), strict=True):
        assert torch.equal(asr.psi, psi.float())
