"""Where ASR goes in known networks. Needs torch only.

The paper's Fig. 7 to 11; for residual networks: the last normalization of every block, before the addition.
"""

from torch import nn

#: Names of the residual blocks of ResNet and its relatives in torchvision, timm and OpenMMLab.
RESIDUAL_BLOCKS = {'BasicBlock', 'Bottleneck'}


def find_sites(model: nn.Module) -> list[str]:
    """Name the layers of a network that the paper scales.

    Args:
        model (nn.Module): A ResNet of torchvision, timm or OpenMMLab, or a network that contains one.

    Returns:
        list[str]: Names of modules, as ``model.get_submodule`` takes them; empty for an unknown network.
    """
    sites = []
    for name, block in model.named_modules():
        if RESIDUAL_BLOCKS.isdisjoint(base.__name__ for base in type(block).__mro__):
            continue
        # OpenMMLab names the layer after the kind of normalization (bn3, gn3) and keeps the name in norm3_name.
        last = next(
            (
                layer
                for layer in (*(getattr(block, f'norm{i}_name', None) for i in (3, 2)), 'bn3', 'bn2')
                if layer and hasattr(block, layer)
            ),
            None,
        )
        if last:
            sites.append(f'{name}.{last}' if name else last)
    return sites
