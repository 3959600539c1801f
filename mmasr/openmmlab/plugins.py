"""ASR and the attention modules as plugins for the blocks of OpenMMLab's ResNets.

Use them as ``plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv3')]`` in any backbone that builds
its plugins with mmcv's ``build_plugin_layer``. That function names a plugin after its ``_abbr_`` and passes
the number of channels as ``in_channels``.
"""

from torch import nn

from ..attention import CBAM, ECA, IE, SE, SPA, SRM
from ..attention.dia import DIA
from ..core.asr import ASR
from ..registry import MODELS


class _Plugin:
    """Mixin that renames the argument ``channels`` to ``in_channels``."""

    def __init__(self, *args, in_channels: int, **kwargs) -> None:
        super().__init__(*args, channels=in_channels, **kwargs)


@MODELS.register_module(name='ASR')
class ASRPlugin(_Plugin, ASR):
    """ASR as a plugin."""

    _abbr_ = 'asr'

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> None:
        """Return None: after folding, no plugin remains.

        Args:
            config (dict): Config of the plugin.
            network (nn.Module, optional): The folded plugin, if it is known.
        """


@MODELS.register_module(name='SE')
class SEPlugin(_Plugin, SE):
    """SE as a plugin."""

    _abbr_ = 'se'


@MODELS.register_module(name='ECA')
class ECAPlugin(_Plugin, ECA):
    """ECA as a plugin."""

    _abbr_ = 'eca'


@MODELS.register_module(name='SRM')
class SRMPlugin(_Plugin, SRM):
    """SRM as a plugin."""

    _abbr_ = 'srm'


@MODELS.register_module(name='IE')
class IEPlugin(_Plugin, IE):
    """IE as a plugin."""

    _abbr_ = 'ie'


@MODELS.register_module(name='SPA')
class SPAPlugin(_Plugin, SPA):
    """SPA as a plugin."""

    _abbr_ = 'spa'


@MODELS.register_module(name='CBAM')
class CBAMPlugin(_Plugin, CBAM):
    """CBAM as a plugin."""

    _abbr_ = 'cbam'


@MODELS.register_module(name='DIA')
class DIAPlugin(_Plugin, DIA):
    """DIA as a plugin."""

    _abbr_ = 'dia'
