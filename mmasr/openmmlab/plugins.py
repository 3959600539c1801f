"""ASR and the attention modules as plugins of OpenMMLab's ResNet stages.

For ``plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv3')]`` of any backbone that builds its plugins with
mmcv's ``build_plugin_layer``, which names a plugin after ``_abbr_`` and passes the number of channels as ``in_channels``.
"""

from torch import nn

from ..attention import CBAM, ECA, IE, SE, SPA, SRM
from ..attention.dia import DIA
from ..core.asr import ASR
from ..registry import MODELS


class _Plugin:
    def __init__(self, *args, in_channels: int, **kwargs) -> None:
        super().__init__(*args, channels=in_channels, **kwargs)


@MODELS.register_module(name='ASR')
class ASRPlugin(_Plugin, ASR):
    _abbr_ = 'asr'

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> None:
        """Nothing is left of it."""


@MODELS.register_module(name='SE')
class SEPlugin(_Plugin, SE):
    _abbr_ = 'se'


@MODELS.register_module(name='ECA')
class ECAPlugin(_Plugin, ECA):
    _abbr_ = 'eca'


@MODELS.register_module(name='SRM')
class SRMPlugin(_Plugin, SRM):
    _abbr_ = 'srm'


@MODELS.register_module(name='IE')
class IEPlugin(_Plugin, IE):
    _abbr_ = 'ie'


@MODELS.register_module(name='SPA')
class SPAPlugin(_Plugin, SPA):
    _abbr_ = 'spa'


@MODELS.register_module(name='CBAM')
class CBAMPlugin(_Plugin, CBAM):
    _abbr_ = 'cbam'


@MODELS.register_module(name='DIA')
class DIAPlugin(_Plugin, DIA):
    _abbr_ = 'dia'
