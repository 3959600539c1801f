"""Photographs, as in docs/own-data.md for one's own data, with ASR and OREPA or X-volution together: train, re-parameterize,
predict."""

import re

import pytest
import torch
from helpers import ROOT, run_tool, stock_predictions
from mmdet.apis import inference_detector, init_detector

FRUITS = ROOT.parent / 'shared/data/fruits'


@pytest.mark.skipif(not FRUITS.is_dir(), reason=f'the photographs are not there: {FRUITS}')
@pytest.mark.parametrize('kind', ['orepa', 'xvolution'])
def test_train_deploy_and_predict_identically(tmp_path, kind):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/fruits').symlink_to(FRUITS)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    documented = re.search(r'```python\n(_base_ = .*?)```', (ROOT / 'docs/own-data.md').read_text(), re.DOTALL)[1]
    config = tmp_path / 'fruits.py'
    assert documented.startswith("_base_ = 'mask_rcnn_r50_asr_se.py'")
    config.write_text(documented.replace('mask_rcnn_r50_asr_se', f'configs/mask_rcnn_r50_{kind}_asr_se'))
    options = [
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=1',
        'train_dataloader.num_workers=1',
        'train_dataloader.dataset.indices=2',
        'train_dataloader.dataset.pipeline.2.scale=(256,192)',
        'val_dataloader.dataset.indices=1',
        'val_dataloader.dataset.pipeline.1.scale=(256,192)',
        'test_dataloader.dataset.pipeline.1.scale=(256,192)',
        'optim_wrapper.optimizer.lr=0.001',
        'model.backbone.init_cfg=None',  # no network to fetch torchvision's weights
        'model.backbone.frozen_stages=-1',
        'model.backbone.norm_eval=False',
        'model.train_cfg.rcnn.sampler.num=16',  # few proposals, and so little for the heads to do
        'model.test_cfg.rpn.max_per_img=20',
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5',
    ]
    result = run_tool('train.py', config, '--work-dir', 'work', '--cfg-options', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_tool('reparam.py', 'work/epoch_1.pth', cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    images = [str(path) for path in sorted((FRUITS / 'images').glob('*.jpg'))[:2]]
    deployed = tmp_path / 'work/epoch_1_deploy.py', tmp_path / 'work/epoch_1_deploy.pth'
    if kind == 'orepa':
        predictions = stock_predictions(*deployed, images, tmp_path)
    else:
        assert 'layers of mmasr in the deployed network, whose config imports mmasr: 6 DynamicConv' in result.stdout
        predictions = [predicted(init_detector(*map(str, deployed), device='cpu'), image) for image in images]
    trained = init_detector(str(tmp_path / 'work/fruits.py'), str(tmp_path / 'work/epoch_1.pth'), device='cpu')
    assert trained.dataset_meta['classes'] == ('date', 'fig', 'hazelnut')
    for image, deployed in zip(images, predictions, strict=True):
        found = predicted(trained, image)
        assert len(found[0]) > 0
        # The folded product is the one that ran, so the same arithmetic gives the same numbers; a dynamic convolution rounds
        # otherwise.
        for expected, actual in zip(found, deployed, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 if kind == 'orepa' else 1e-3)


def predicted(detector, image):
    """Boxes, scores, labels and masks."""
    found = inference_detector(detector, image).pred_instances
    return found.bboxes, found.scores, found.labels, found.masks
