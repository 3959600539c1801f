"""What configs of other packages' classes become when the network is deployed."""

from collections.abc import Callable

#: By package and registered name: config -> config of the deployed form.
DEPLOYED: dict[str, Callable[[dict], dict]] = {}


def _rep_vgg(config: dict) -> dict:
    """mmpretrain's RepVGG, unless its blocks have an SE layer, which its deployed form leaves out, or another normalization
    than BatchNorm: those keep their branches."""
    from mmpretrain.models.backbones import RepVGG

    arch = config['arch']
    arch = RepVGG.arch_settings[arch] if isinstance(arch, str) else arch
    merges = arch['se_cfg'] is None and config.get('norm_cfg', {'type': 'BN'})['type'] == 'BN'
    return {**config, 'deploy': True} if merges else config


DEPLOYED['mmpretrain.RepVGG'] = _rep_vgg
