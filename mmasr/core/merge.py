"""Modules with branches on feature maps that merge into one layer. Needs torch only.

One of the two kinds of re-parameterization (the other is :class:`mmasr.core.computed.Computed`). A class of ours extends
:class:`Merging`; for a class of another library an :class:`Adapter` says the same.
"""

import dataclasses
from collections.abc import Callable, Sequence

from torch import nn

from .by_class import by_class


class Merging(nn.Module):
    """Base of a module that takes the place of a convolution while a network trains, and becomes one layer again.

    A subclass takes ``in_channels, out_channels, kernel_size, stride, padding, dilation, groups`` as ``nn.Conv2d`` does, then
    its own options; it implements ``forward`` and :meth:`merged`, and is registered as
    ``mmasr.core.attach.CONVOLUTIONS['Name'] = Name``. Nothing else has to know it.
    """

    #: Names of the last layers of branches whose outputs are added up, which one ASR can scale together; without them the
    #: module can't carry an ASR.
    outputs: tuple[str, ...] = ()
    #: Name of the layer in it that takes the weight of the convolution whose place it takes, also from a plain checkpoint.
    heir: str | None = None
    #: Name of a child by which the names of weights tell where it is, also of those of what it becomes if that is a layer of
    #: ours.
    mark: str | None = None
    #: Whether it becomes a layer with a kernel that depends on the input, which inputs of one size and scale do not vouch for.
    depends_on_input = False
    #: Whether the convolution whose place it takes has a bias. The one that it becomes has, and where that is one too many,
    #: :func:`mmasr.core.absorb.absorb_biases` moves it into the normalization that comes after.
    stock_bias = True

    def init_weights(self) -> None:
        """Set initial values other than torch's. OpenMMLab's ``init_weights`` comes by here after it has initialised what is
        around."""

    def merged(self) -> nn.Module:
        """The one layer that computes the same in eval mode."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if self.heir and f'{prefix}weight' in state_dict:  # before its children look there for theirs
            state_dict[f'{prefix}{self.heir}.weight'] = state_dict.pop(f'{prefix}weight')
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Check that it can take a layer's place.

        Args:
            name (str): The layer's name, for the error.
            layer (nn.Module): Any module.

        Raises:
            ValueError: If the layer is anything but a plain ``nn.Conv2d`` with zeros around its input.
        """
        if type(layer) is not nn.Conv2d or layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
            raise ValueError(
                f"{name} ({type(layer).__name__}) can't become {cls.__name__}, which takes the place of an nn.Conv2d with a "
                'padding of zeros that is given in numbers'
            )

    @classmethod
    def sites(cls, model: nn.Module) -> list[str]:
        """Names of the layers of a network that it takes the place of by default: all 3 x 3 convolutions, but for those in
        blocks that merge by themselves."""
        inside = {part for block in model.modules() if is_merging(block) for part in block.modules()}
        return [
            name
            for name, layer in model.named_modules()
            if type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) and layer not in inside
        ]

    @staticmethod
    def no_sites(model: nn.Module) -> str:
        """What to say of a network in which :meth:`sites` finds nothing."""
        return 'has no 3 x 3 convolution'

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """The options that it takes at each of some layers of a network, as of :class:`mmasr.core.computed.Computed`."""
        return dict.fromkeys(names, options)

    @classmethod
    def of(cls, conv: nn.Conv2d, **options) -> 'Merging':
        """Make one in the place of a convolution.

        Args:
            conv (nn.Conv2d): The convolution.
            **options: The options of the class itself.

        Returns:
            Merging: Of the convolution's shape, device and dtype, with values of its own.

        Raises:
            ValueError: If the options or the convolution's shape are none for it.
        """
        names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
        made = cls(**{name: getattr(conv, name) for name in names}, **options).to(conv.weight)
        made.stock_bias = conv.bias is not None
        if made.heir:
            made.get_submodule(made.heir).weight.data.copy_(conv.weight)
        return made

    @classmethod
    def deployed(cls, options: dict, network: nn.Module | None) -> dict | None:
        """What a config says in the place of its options once it is merged.

        Args:
            options (dict): The options, ``type`` and ``sites`` among them.
            network (nn.Module, optional): The merged network that the config is of, where that is known.

        Returns:
            dict | None: Options that build the merged form, where that is a layer of ours; None where it is a stock one.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a class of another library says of itself in its own way.

    Attributes:
        outputs (tuple[str, ...]): As :attr:`Merging.outputs`, and the layer that the branches become.
        method (str): Name of its method that merges the branches, in place.
        can_merge (callable): ``module -> bool``: whether there are branches left, and the method keeps what it computes.
        in_configs (bool): Whether a config can say that the branches are merged, so that deployed files can hold them so.
    """

    outputs: tuple[str, ...]
    method: str
    can_merge: Callable[[nn.Module], bool]
    in_configs: bool


#: Adapters by package and class.
ADAPTERS: dict[str, Adapter] = {}


def is_merging(module: nn.Module) -> bool:
    """Whether a module is of a kind that merges, be it merged already."""
    return isinstance(module, Merging) or by_class(ADAPTERS, module) is not None


def can_merge(module: nn.Module) -> bool:
    """Whether a module has branches to merge."""
    adapter = by_class(ADAPTERS, module)
    return isinstance(module, Merging) or (adapter is not None and adapter.can_merge(module))


def stays_in_files(module: nn.Module) -> bool:
    """Whether a module that merges keeps its branches in deployed files, since no config builds it without them."""
    adapter = by_class(ADAPTERS, module)
    return adapter is not None and not adapter.in_configs


def merged(module: nn.Module) -> nn.Module:
    """Merge the branches of a module.

    Args:
        module (nn.Module): One that :func:`can_merge`, without anything in it that is still to be folded.

    Returns:
        nn.Module: What it becomes, in the same mode: a layer of its own, or itself where another library merges in place.
    """
    if isinstance(module, Merging):
        return module.merged().train(module.training)
    getattr(module, by_class(ADAPTERS, module).method)()
    return module


def branch_outputs(module: nn.Module) -> dict[str, nn.Module]:
    """The last layers of branches that a module adds up, by name; empty for one that adds up none."""
    adapter = by_class(ADAPTERS, module)
    names = module.outputs if isinstance(module, Merging) else adapter.outputs if adapter else ()
    if not names:
        return {}
    modules = dict(module.named_modules())  # a branch may be missing, or merged with the others already
    return {name: modules[name] for name in names if name in modules}
