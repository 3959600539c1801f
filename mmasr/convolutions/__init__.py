"""Convolutions that train with several branches and fold into one layer. Needs torch only.

Each kind is one file and one registration here.
"""

from ..core.reparameterization import REPARAMETERIZATIONS
from . import blocks  # noqa: F401  registers the blocks of other libraries
from .acnet import ACNet
from .dbb import DBB, OfflineOREPA
from .dilated import DilatedReparam
from .mobileone import MobileOne
from .orepa import OREPA
from .repvgg import QARepVGG, RepVGG
from .xvolution import XVolution

__all__ = [
    'DBB',
    'OREPA',
    'ACNet',
    'DilatedReparam',
    'MobileOne',
    'OfflineOREPA',
    'QARepVGG',
    'RepVGG',
    'XVolution',
]

REPARAMETERIZATIONS.update(
    ACNet=ACNet,
    DBB=DBB,
    DilatedReparam=DilatedReparam,
    MobileOne=MobileOne,
    OfflineOREPA=OfflineOREPA,
    OREPA=OREPA,
    QARepVGG=QARepVGG,
    RepVGG=RepVGG,
    XVolution=XVolution,
)
