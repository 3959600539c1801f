"""ASR and the attention modules as plugins of OpenMMLab's ResNet stages.

For ``plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv3')]`` of any backbone that builds its plugins with
mmcv's ``build_plugin_layer``, which passes the number of channels as ``in_channels``.
"""

from torch import nn

from ..attention import CBAM, ECA, IE, SE, SPA, SRM
from ..core.asr import ASR
from ..registry import MODELS


def _register(cls: type[nn.Module]) -> None:
    class Plugin(cls):
        _abbr_ = cls.__name__.lower()

        def __init__(self, *args, in_channels: int, **kwargs) -> None:
            super().__init__(*args, channels=in_channels, **kwargs)

    Plugin.__name__ = Plugin.__qualname__ = f'{cls.__name__}Plugin'
    Plugin.__doc__ = cls.__doc__
    globals()[Plugin.__name__] = Plugin  # where pickle looks for it
    MODELS.register_module(name=cls.__name__, module=Plugin)


for _cls in (ASR, SE, ECA, SRM, IE, SPA, CBAM):
    _register(_cls)
