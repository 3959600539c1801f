"""RepVGG blocks of MMPretrain and timm, which merge their own branches. Needs torch only.

RepVGG: Making VGG-style ConvNets Great Again, Ding et al., CVPR 2021, https://arxiv.org/abs/2101.03697.
"""

from ..core.merge import ADAPTERS, Adapter

ADAPTERS['mmpretrain.RepVGGBlock'] = Adapter(
    branch_ends=lambda block: ('branch_3x3.norm', 'branch_1x1.norm', 'branch_norm', 'branch_reparam'),
    # The deployed form of a block leaves out its SE layer, and only BatchNorm can be merged.
    can_merge=lambda block: not block.deploy and block.se_cfg is None and block.norm_cfg['type'] == 'BN',
    method='switch_to_deploy',
)
ADAPTERS['timm.RepVggBlock'] = Adapter(
    branch_ends=lambda block: ('conv_kxk.bn', 'conv_1x1.bn', 'identity', 'reparam_conv'),
    can_merge=lambda block: block.reparam_conv is None,
    method='reparameterize',
)
