"""RepVGG: Making VGG-style ConvNets Great Again, Ding et al., CVPR 2021, https://arxiv.org/abs/2101.03697: the blocks of
MMPretrain and timm, which merge by themselves. Needs torch only."""

from ..core.merge import ADAPTERS, Adapter

ADAPTERS['mmpretrain.RepVGGBlock'] = Adapter(
    outputs=('branch_3x3.norm', 'branch_1x1.norm', 'branch_norm', 'branch_reparam'),
    method='switch_to_deploy',
    # In its deployed form a block leaves its SE layer out, and it merges BatchNorm alone.
    can_merge=lambda block: not block.deploy and block.se_cfg is None and block.norm_cfg['type'] == 'BN',
    in_configs=True,
)
ADAPTERS['timm.RepVggBlock'] = Adapter(
    outputs=('conv_kxk.bn', 'conv_1x1.bn', 'identity', 'reparam_conv'),
    method='reparameterize',
    can_merge=lambda block: block.reparam_conv is None,
    in_configs=False,
)
