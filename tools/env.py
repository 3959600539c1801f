"""Print the versions of Python, torch, OpenMMLab and the other packages, for a bug report.

Example: python tools/env.py
"""

import argparse
import importlib
import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version

import torch

import mmasr

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg')
OTHERS = ('torchvision', 'timm', 'onnx', 'onnxruntime', 'openvino', 'numpy')


def environment() -> dict[str, str]:
    """Return what a bug report needs: name -> version or description."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    installed = packages_distributions()
    return {
        'system': platform.platform(),
        'python': platform.python_version(),
        'mmasr': mmasr.__version__,
        'torch': torch.__version__,
        'CUDA of torch': torch.version.cuda or 'none',
        'GPUs': ', '.join(gpus) or 'none',
        **{name: describe(installed.get(name, [name])) for name in (*OPENMMLAB, *OTHERS)},
        'mmcv.ops': describe_operators(),
    }


def describe(distributions: list[str]) -> str:
    """Return the versions of distributions, such as ``2.3.6 (onedl-mmcv)``; or that they are missing."""
    try:
        return ', '.join(f'{version(name)} ({name})' for name in sorted(set(distributions)))
    except PackageNotFoundError:
        return 'not installed'


def describe_operators() -> str:
    """Return how mmcv's operators were compiled, or why they cannot be imported."""
    try:
        operators = importlib.import_module('mmcv.ops')
    except Exception as error:  # a broken installation can raise anything
        return f'cannot be imported: {error}'.splitlines()[0]
    return f'compiled with {operators.get_compiler_version()}, CUDA {operators.get_compiling_cuda_version()}'


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, value in environment().items():
        print(f'{name:13} {value}')


if __name__ == '__main__':
    main()
