"""What the package carries beside its code, where OpenMMLab's packages have it: ``.mim/configs`` and ``.mim/tools``.

In a checkout these are links to its folders, in a wheel the files themselves.
"""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

CONFIGS = Path(__file__).parent / '.mim/configs'
_of_mmengine = Config._get_cfg_path


def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """The path of a base: ``mmasr::mask_rcnn_r50_asr_se.py`` is a config of the package; the others are mmengine's affair.

    mmengine knows the packages of OpenMMLab only, wants them to have their configs in folders, and gives what is in them the
    package's scope; the types in our configs say theirs themselves.
    """
    if not cfg_path.startswith('mmasr::'):
        return _of_mmengine(cfg_path, filename)
    return str(CONFIGS / cfg_path.removeprefix('mmasr::')), None


Config._get_cfg_path = staticmethod(_get_cfg_path)
if find_spec('mmseg'):  # mmengine looks for mmsegmentation; the maintained line is installed under another name
    MODULE2PACKAGE['mmseg'] = 'mmseg'
