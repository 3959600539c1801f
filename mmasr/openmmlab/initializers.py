"""Weight initializers that a config can name."""

from torch import nn

from ..core.sites import find_sites, no_sites
from ..errors import InputError
from ..registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class SitesConstant:
    """Initializer that sets the weights of ASR's default sites to a constant.

    It is the control in a comparison with ASR, whose scale starts near 0.5.

    Args:
        val (float): The constant.
    """

    def __init__(self, val: float) -> None:
        self.val = val

    def __call__(self, module: nn.Module) -> None:
        """Initialize a backbone.

        Raises:
            InputError: If its sites are unknown.
        """
        sites = find_sites(module)
        if not sites:
            raise InputError(
                f'SitesConstant has nothing to initialize: {type(module).__name__} {no_sites(module)}'
            )
        for site in sites:
            nn.init.constant_(module.get_submodule(site).weight, self.val)
