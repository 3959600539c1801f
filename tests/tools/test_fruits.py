"""Train on photographs as in docs/own-data.md, with ASR and OREPA or X-volution, deploy, and predict."""

import re
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_tool, stock_predictions
from mmdet.apis import inference_detector, init_detector


@pytest.fixture
def photographs(request):
    """Return the folder of the option --photographs; skip the test without it."""
    folder = request.config.getoption('photographs')
    if folder is None:
        pytest.skip('needs the dataset data/fruits of docs/own-data.md; pass it with --photographs FOLDER')
    return Path(folder).resolve(strict=True)


@pytest.mark.parametrize('kind', ['orepa', 'xvolution'])
def test_the_deployed_detector_predicts_like_the_trained_one(photographs, tmp_path, kind):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/fruits').symlink_to(photographs)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    documented = re.search(
        r'```python\n(_base_ = .*?)```', (ROOT / 'docs/own-data.md').read_text(), re.DOTALL
    )[1]
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
        'model.backbone.init_cfg=None',  # no download of torchvision's weights
        'model.backbone.frozen_stages=-1',
        'model.backbone.norm_eval=False',
        'model.train_cfg.rcnn.sampler.num=16',  # few proposals, to save time in the heads
        'model.test_cfg.rpn.max_per_img=20',
        'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5',
    ]
    result = run_tool('train.py', config, '--work-dir', 'work', '--cfg-options', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_tool('reparam.py', 'work/epoch_1.pth', cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    images = [str(path) for path in sorted((photographs / 'images').glob('*.jpg'))[:2]]
    deployed = tmp_path / 'work/epoch_1_deploy.py', tmp_path / 'work/epoch_1_deploy.pth'
    if kind == 'orepa':
        predictions = stock_predictions(*deployed, images, tmp_path)
    else:
        assert 'layers of mmasr that remain, for which the config imports it: 6 DynamicConv' in result.stdout
        predictions = [predicted(init_detector(*map(str, deployed), device='cpu'), image) for image in images]
    trained = init_detector(
        str(tmp_path / 'work/fruits.py'), str(tmp_path / 'work/epoch_1.pth'), device='cpu'
    )
    assert trained.dataset_meta['classes'] == ('date', 'fig', 'hazelnut')
    for image, deployed in zip(images, predictions, strict=True):
        found = predicted(trained, image)
        assert len(found[0]) > 0
        # Folding writes the same products that the trained network ran with, so the numbers are the same.
        # Dynamic convolutions round differently.
        for expected, actual in zip(found, deployed, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 if kind == 'orepa' else 1e-3)


def predicted(detector, image):
    """Return boxes, scores, labels and masks."""
    found = inference_detector(detector, image).pred_instances
    return found.bboxes, found.scores, found.labels, found.masks
