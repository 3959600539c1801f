"""mmasr: channel attention without inference cost, for MMDetection and MMPretrain.

The core (:mod:`mmasr.core.asr`, :mod:`mmasr.core.host`, :mod:`mmasr.attention`) needs torch only. Where mmengine is installed,
importing the package also registers its backbones and plugins under the scope ``mmasr``.
"""

from importlib.util import find_spec

from .attention import CBAM, ECA, IE, SE, SPA, SRM
from .core.asr import ASR
from .core.host import attach, fold

__version__ = '0.1.0'
__all__ = ['ASR', 'CBAM', 'ECA', 'IE', 'SE', 'SPA', 'SRM', 'attach', 'fold']

if find_spec('mmengine'):
    from . import registry  # noqa: F401
