"""Semi-supervised detectors are deployed as the stock detector that predicts."""

import pytest
import torch
from helpers import randomize_scales, save_network, small_detector
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner

from mmasr.deploy.compare import network_outputs
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.building import build_model, load_weights

NORMALIZED = {'type': 'DetDataPreprocessor', 'mean': [1.0] * 3, 'std': [2.0] * 3}
WITHOUT_DATA = dict.fromkeys(
    ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator')
)


def semi_supervised(**semi_test_cfg):
    """Return the config of a SoftTeacher of small detectors with ASR."""
    config = small_detector(asr={'attention': {'type': 'SE'}}).to_dict()
    model = {
        'type': 'SoftTeacher',
        'detector': config['model'],
        'data_preprocessor': {'type': 'MultiBranchDataPreprocessor', 'data_preprocessor': NORMALIZED},
        'semi_train_cfg': {'freeze_teacher': True},
        'semi_test_cfg': semi_test_cfg,
    }
    return Config({**config, 'model': model})


@pytest.mark.parametrize('with_config', [False, True], ids=['embedded', 'file'])
@pytest.mark.parametrize(
    ('settings', 'part'),
    [({}, 'teacher'), ({'predict_on': 'teacher'}, 'teacher'), ({'predict_on': 'student'}, 'student')],
    ids=['default', 'teacher', 'student'],
)
def test_the_part_that_predicts_becomes_a_stock_detector(tmp_path, settings, part, with_config):
    config = semi_supervised(**settings)
    trained = save_network(tmp_path / 'a.pth', config, randomize_scales)
    config.dump(tmp_path / 'config.py')
    report = reparameterize(tmp_path / 'a.pth', tmp_path / 'config.py' if with_config else None)
    assert report.config_changes[0] == f'model (the {part} of SoftTeacher)'
    assert not any(name.startswith(('teacher', 'student')) for name in report.folded)
    deployed = Config.fromfile(report.config)
    assert (deployed.model.type, deployed.model.backbone.type) == ('MaskRCNN', 'mmdet.ResNet')
    assert deployed.model.data_preprocessor == NORMALIZED
    weights = torch.load(report.checkpoint, weights_only=True)['state_dict']
    model = build_model(deployed)
    load_weights(model, weights, report.checkpoint)
    for half in (trained.teacher, trained.student):  # which the images of the comparison depend on
        half.data_preprocessor = trained.data_preprocessor.data_preprocessor
    expected, found = network_outputs(trained.get_submodule(part)), network_outputs(model)
    other = network_outputs(trained.get_submodule({'teacher': 'student', 'student': 'teacher'}[part]))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-4 * float(tensor.abs().max()))
    assert any(not torch.allclose(found[name], tensor, rtol=1e-2) for name, tensor in other.items())


def test_settings_that_need_both_halves_are_left_out(tmp_path):
    stock = get_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    config = Config({**stock.to_dict(), **semi_supervised().to_dict()})
    save_network(tmp_path / 'a.pth', config, randomize_scales)
    config.dump(tmp_path / 'config.py')
    deployed = Config.fromfile(reparameterize(tmp_path / 'a.pth', tmp_path / 'config.py').config)
    assert deployed.val_cfg.type == 'ValLoop'
    assert deployed.test_dataloader == config.test_dataloader
    assert deployed.custom_hooks == []
    runner = Runner.from_cfg(Config({**deployed, **WITHOUT_DATA, 'work_dir': str(tmp_path)}))
    assert type(runner.model).__name__ == 'MaskRCNN'


def test_a_half_that_is_missing_is_refused(tmp_path):
    save_network(tmp_path / 'a.pth', semi_supervised(), randomize_scales)
    checkpoint = torch.load(tmp_path / 'a.pth', weights_only=False)
    weights = checkpoint['state_dict']
    checkpoint['state_dict'] = {n: t for n, t in weights.items() if n.startswith('student.')}
    torch.save(checkpoint, tmp_path / 'a.pth')
    with pytest.raises(InputError, match=r'missing: teacher\.'):
        reparameterize(tmp_path / 'a.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']
