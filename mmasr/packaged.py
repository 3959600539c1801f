"""Configs and tools inside the package: ``.mim/configs`` and ``.mim/tools``, as in OpenMMLab's packages.

In a checkout these are links to the folders ``configs`` and ``tools``; a wheel contains the files themselves.
"""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

CONFIGS = Path(__file__).parent / '.mim/configs'
_mmengine_cfg_path = Config._get_cfg_path


def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Return the path and scope of a base config.

    ``mmasr::mask_rcnn_r50_asr_se.py`` is a config of this package; mmengine handles all other paths. mmengine
    itself knows only OpenMMLab's packages and expects their configs in folders. It would also apply the
    package's scope to the types in our configs, which already name their scopes.
    """
    if not cfg_path.startswith('mmasr::'):
        return _mmengine_cfg_path(cfg_path, filename)
    return str(CONFIGS / cfg_path.removeprefix('mmasr::')), None


Config._get_cfg_path = staticmethod(_get_cfg_path)
if find_spec('mmseg'):
    # mmengine looks for the package mmsegmentation, but the maintained line is installed under another name.
    MODULE2PACKAGE['mmseg'] = 'mmseg'
