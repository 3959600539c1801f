"""The machine that a measurement ran on."""

import contextlib
import os
import platform
import sys
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """Describe the machine and the software of a measurement.

    Args:
        device (torch.device): The device that was measured.

    Returns:
        dict[str, str]: Processor, number of cores, GPU and CUDA version (if ``device`` is one), system, and
        versions of Python and of the imported packages.
    """
    found = {'processor': platform.machine(), 'cores': str(len(os.sched_getaffinity(0)))}
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        models = (line.split(': ')[1] for line in lines if line.startswith('model name'))
        found['processor'] = next(models, found['processor'])
    if device.type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = torch.version.cuda
    found.update(system=f'{platform.system()} {platform.machine()}', python=platform.python_version())
    for package in ('torch', 'torchvision', 'mmengine', 'mmdet', 'mmpretrain'):
        if sys.modules.get(package):
            found[package] = sys.modules[package].__version__
    return found
