"""Deployed forms of other packages' networks: how their configs change when a network is deployed."""

from collections.abc import Callable

import torch
from mmengine.registry import MODELS
from torch import nn

from ..core.class_lookup import lookup_by_class

#: ``'package.RegisteredName'`` of networks whose blocks merge -> the option with which a config builds them
#: merged. A block outside such a network has no deployed config.
MERGED_OPTIONS = {
    'mmpretrain.RepVGG': 'deploy',
    'mmpretrain.MobileOne': 'deploy',
    'mmpretrain.RepLKNet': 'small_kernel_merged',
    'mmpretrain.RepMLPNet': 'deploy',
    'mmpretrain.LeViT': 'deploy',  # LeViTClsHead has the option, too, but does not build with it
    'mmpretrain.RIFormer': 'deploy',
}


def _merged_if_possible(name: str, option: str) -> Callable[[dict, nn.Module | None], dict]:
    def deployed(config: dict, network: nn.Module | None) -> dict:
        """Return the config of the merged network; the same config if the network has branches."""
        merged = {**config, option: True}
        if network is None:
            return merged
        with torch.random.fork_rng([]):
            built = MODELS.build({**merged, 'type': name})
        return merged if built.state_dict().keys() == network.state_dict().keys() else config

    return deployed


#: ``'package.RegisteredName'`` -> function that maps a config, and the folded network if it is known, to the
#: config of the deployed form.
DEPLOYED: dict[str, Callable[[dict, nn.Module | None], dict]] = {
    name: _merged_if_possible(name, option) for name, option in MERGED_OPTIONS.items()
}


def mergeable_networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a network that a config can build with all of their blocks merged, by name."""
    return {name: part for name, part in model.named_modules() if lookup_by_class(MERGED_OPTIONS, part)}
