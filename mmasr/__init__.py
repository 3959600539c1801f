"""mmasr: structural re-parameterization for MMDetection, MMPretrain and MMSegmentation.

The core, the attention modules and the convolutions need torch only. Code that needs mmcv, mmdet, mmpretrain
or mmseg is imported only when a config asks for it.

Importing mmasr changes the process in these ways only:

- It registers a global hook of torch (``register_module_module_registration_hook``), which runs whenever a
  module becomes a child of another. With it, a normalization keeps its ASR when it is converted to or from
  SyncBatchNorm, which builds a new layer.
- If mmengine is installed, the registries of the scope ``mmasr`` become children of mmengine's. A config can
  then name ``mmasr.ASRResNet``.
- If mmengine is installed, its ``Config`` finds the configs of this package. A config can then have the base
  ``mmasr::mask_rcnn_r50_asr_se.py``.
- If MMSegmentation is also installed, ``Config`` finds its configs, whichever name it was installed under.
"""

from importlib.util import find_spec

from . import convolutions  # noqa: F401  registers them for attach
from .attention import CBAM, ECA, IE, SE, SPA, SRM
from .core.asr import ASR
from .core.attach import attach
from .core.fold import fold
from .stripes.fold_attention import fold_attention

__version__ = '0.1.0'
__all__ = ['ASR', 'CBAM', 'ECA', 'IE', 'SE', 'SPA', 'SRM', 'attach', 'fold', 'fold_attention']

if find_spec('mmengine'):
    from . import packaged, registry  # noqa: F401
