"""What configs of other packages' classes become when the network is deployed."""

from collections.abc import Callable

from torch import nn

#: By package and registered name: config and, where it is known, the folded network -> config of the deployed form.
DEPLOYED: dict[str, Callable[[dict, nn.Module | None], dict]] = {}


def _rep_vgg(config: dict, network: nn.Module | None) -> dict:
    """mmpretrain's RepVGG, unless its blocks have an SE layer, which its deployed form leaves out, or another normalization
    than BatchNorm: those keep their branches."""
    from mmpretrain.models.backbones import RepVGG

    arch = config['arch']
    arch = RepVGG.arch_settings[arch] if isinstance(arch, str) else arch
    merges = arch['se_cfg'] is None and config.get('norm_cfg', {'type': 'BN'})['type'] == 'BN'
    return {**config, 'deploy': True} if merges else config


DEPLOYED['mmpretrain.RepVGG'] = _rep_vgg
