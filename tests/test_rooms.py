"""What ``import mmasr`` needs and does."""

import subprocess
import sys

CORE = """
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision', 'timm', 'rich'):
    sys.modules[name] = None
import torch
import mmasr
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
x = torch.randn(2, 3, 8, 8)
mmasr.attach(model, dict(type='SE'), sites=['1'])
model.eval()
expected = model(x)
torch.testing.assert_close(mmasr.fold(model)(x), expected)
import mmasr.stripes.mean_fold
with mmasr.stripes.Observer(torch.nn.Sequential(mmasr.SE(3))) as observer:
    observer.modules['0'](x)
assert observer.stripes['0'].v.count == 2
"""

REGISTERED = """
import mmengine.registry, sys
import mmasr
# Quick: MMDetection is imported when something of it is asked for.
assert not [name for name in ('mmdet', 'mmcv', 'mmpretrain', 'torchvision') if name in sys.modules]
assert mmengine.registry.MODELS.get('mmasr.ASRResNet').__name__ == 'ASRResNet'
assert mmengine.registry.MODELS.get('mmasr.SE') is not None
"""


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_core_works_with_torch_alone():
    run(CORE)


def test_it_registers_and_imports_nothing_heavy():
    run(REGISTERED)
