"""What all processes of the tests begin with: libraries that take long to import, nothing of ours and none that registers
networks; and two functions of theirs that are asked for the same again and again."""

import functools
import gc
import importlib.util

import mmengine.config.utils
from mmengine.config import Config
from yapf.yapflib import yapf_api

for library in ('torchvision', 'mmengine.runner', 'mmcv.ops', 'matplotlib.pyplot', 'pycocotools.coco', 'sklearn'):
    importlib.import_module(library)
if importlib.util.find_spec('imgaug'):  # which upstream MMDetection does without
    importlib.import_module('imgaug')

# For one base from a package mmengine reads what the package says of all its networks.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
for package in ('mmdet', 'mmpretrain'):
    Config.fromstring(f"_base_ = '{package}::_base_/default_runtime.py'", '.py')

# A training formats its config four times.
format_code = yapf_api.FormatCode


@functools.cache
def formatted(code: str, *style: tuple[str, object]) -> tuple[str, bool]:
    return format_code(code, style_config=dict(style))


yapf_api.FormatCode = lambda code, style_config: formatted(code, *style_config.items())

gc.freeze()  # every data set collects garbage when it is built, which is none of all this
