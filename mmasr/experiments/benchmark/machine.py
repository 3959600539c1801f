"""What a measurement was made on."""

import contextlib
import os
import platform
import sys
from pathlib import Path

import torch


def machine(device: torch.device) -> dict[str, str]:
    """Processor or GPU, system, and the versions of what takes part.

    Args:
        device (torch.device): What was measured.

    Returns:
        dict[str, str]: One entry for each.
    """
    found = {'processor': platform.machine(), 'cores': str(len(os.sched_getaffinity(0)))}
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        found['processor'] = next((line.split(': ')[1] for line in lines if line.startswith('model name')), found['processor'])
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = torch.version.cuda
    found.update(system=f'{platform.system()} {platform.machine()}', python=platform.python_version())
    for package in ('torch', 'torchvision', 'mmengine', 'mmdet', 'mmpretrain'):
        if sys.modules.get(package):
            found[package] = sys.modules[package].__version__
    return found
