"""mmasr: structural re-parameterization for MMDetection, MMPretrain and MMSegmentation.

The core, attention and convolutions need torch only. Importing mmasr does three things to the process, and no more: torch is
asked to tell of every module that is registered in another (``register_module_module_registration_hook``), so that a
normalization with an ASR keeps it through conversions to and from SyncBatchNorm, which build new layers; and where mmengine is
installed, the registries of the scope ``mmasr`` become children of mmengine's, so that a config can name ``mmasr.ASRResNet``,
and its ``Config`` finds the package's configs, so that one can have the base ``mmasr::mask_rcnn_r50_asr_se.py``; where
MMSegmentation is, ``Config`` finds its configs as well, under whichever name it was installed.
What needs mmcv, mmdet, mmpretrain or mmseg is imported when a config asks for it.
"""

from importlib.util import find_spec

from . import convolutions  # noqa: F401  makes them known to attach
from .attention import CBAM, ECA, IE, SE, SPA, SRM
from .core.asr import ASR
from .core.attach import attach
from .core.fold import fold

__version__ = '0.1.0'
__all__ = ['ASR', 'CBAM', 'ECA', 'IE', 'SE', 'SPA', 'SRM', 'attach', 'fold']

if find_spec('mmengine'):
    from . import packaged, registry  # noqa: F401
