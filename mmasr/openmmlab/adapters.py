"""Deployed forms of other packages' networks: how their configs change when a network is deployed."""

from collections.abc import Callable

from torch import nn

#: ``'package.RegisteredName'`` -> function that maps a config, and the folded network if it is known, to the
#: config of the deployed form.
DEPLOYED: dict[str, Callable[[dict, nn.Module | None], dict]] = {}


def _deployed_repvgg(config: dict, network: nn.Module | None) -> dict:
    """Return the deployed config of mmpretrain's RepVGG.

    The branches stay if the blocks have an SE layer, which mmpretrain's deployed form lacks, or a
    normalization other than BatchNorm.
    """
    from mmpretrain.models.backbones import RepVGG

    arch = config['arch']
    arch = RepVGG.arch_settings[arch] if isinstance(arch, str) else arch
    merges = arch['se_cfg'] is None and config.get('norm_cfg', {'type': 'BN'})['type'] == 'BN'
    return {**config, 'deploy': True} if merges else config


DEPLOYED['mmpretrain.RepVGG'] = _deployed_repvgg
