"""Preparation of every test process: slow imports, and caches for two slow functions.

Nothing here imports mmasr or a library that registers networks.
"""

import functools
import gc
import importlib.util

import mmengine.config.utils
from mmengine.config import Config
from yapf.yapflib import yapf_api

for library in (
    'torchvision',
    'mmengine.runner',
    'mmcv.ops',
    'matplotlib.pyplot',
    'pycocotools.coco',
    'sklearn',
):
    importlib.import_module(library)
if importlib.util.find_spec('imgaug'):  # upstream MMDetection does not need it
    importlib.import_module('imgaug')

# For each base config from a package, mmengine reads that package's whole model index.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
for package in ('mmdet', 'mmpretrain'):
    Config.fromstring(f"_base_ = '{package}::_base_/default_runtime.py'", '.py')

# A training run formats its config four times.
format_code = yapf_api.FormatCode


@functools.cache
def formatted(code: str, *style: tuple[str, object]) -> tuple[str, bool]:
    return format_code(code, style_config=dict(style))


yapf_api.FormatCode = lambda code, style_config: formatted(code, *style_config.items())

gc.freeze()  # every dataset collects garbage when it is built; nothing imported here is garbage
