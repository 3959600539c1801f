"""Initial values that a config can ask for."""

from torch import nn

from ..core.known import find_sites, no_sites
from ..registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class SitesConstant:
    """The weights of the layers where an ASR would go by default start at a constant: the control of a comparison with ASR,
    whose scale starts near one half.

    Args:
        val (float): The constant.
    """

    def __init__(self, val: float) -> None:
        self.val = val

    def __call__(self, module: nn.Module) -> None:
        """Initialise a backbone.

        Raises:
            ValueError: If its sites are not known.
        """
        sites = find_sites(module)
        if not sites:
            raise ValueError(f'SitesConstant has nothing to initialise: {type(module).__name__} {no_sites(module)}')
        for site in sites:
            nn.init.constant_(module.get_submodule(site).weight, self.val)
