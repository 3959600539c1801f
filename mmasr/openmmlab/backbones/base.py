"""ASR in a backbone of somebody else."""

from collections.abc import Sequence

from torch import nn

from ...core.host import Host, Mixed, attach, mixed_class, stock_class
from ...registry import MODELS


class _InitializesASR:
    """Gives the ASRs of a backbone their initial state, and keeps its own ``init_weights`` from reaching into them."""

    def init_weights(self, *args, **kwargs) -> None:
        if 'Pretrained' in str(getattr(self, 'init_cfg', None)):
            super().init_weights(*args, **kwargs)
            return  # what was loaded stays, ASR included
        hosts = [module for module in self.modules() if isinstance(module, Host)]
        asrs = [host._modules.pop('asr') for host in hosts]
        super().init_weights(*args, **kwargs)
        for host, asr in zip(hosts, asrs, strict=True):
            host.asr = asr
            host.init_weights()


class _Mixin(_InitializesASR, Mixed):
    """For a backbone whose class is somebody else's."""


class WithASR(_InitializesASR):
    """Adds ``asr`` to a stock backbone; to be named before it among the bases.

    Args:
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`. Default: None, the stock network.
        *args, **kwargs: The arguments of the stock backbone.
    """

    def __init__(self, *args, asr: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if asr is not None:
            _attach(self, asr)

    def fold_asr(self) -> None:
        """Become the stock backbone again."""
        self.__class__ = stock_class(type(self))


def _attach(model: nn.Module, asr: dict) -> None:
    """Attach ASR, and freeze that of what is frozen."""
    frozen = {name for name, m in model.named_modules() if not any(p.requires_grad for p in m.parameters())}
    attach(model, **asr)
    for name, module in model.named_modules():
        if isinstance(module, Host) and name.rpartition('.')[0] in frozen:
            module.asr.requires_grad_(False)


@MODELS.register_module()
def ASRBackbone(backbone: dict, asr: dict, sites: str | Sequence[str] | None = None) -> nn.Module:
    """Build any registered backbone and attach ASR to it.

    The result is the inner backbone itself, so that its state dict keeps its names. An ASR whose surroundings (the module
    that its host is a child of) are frozen is frozen with them.

    Args:
        backbone (dict): Config of the inner backbone, of any registry that mmengine knows.
        asr (dict): ``attention`` and the other options of :class:`mmasr.ASR`.
        sites (str | Sequence[str], optional): See :func:`mmasr.attach`.

    Raises:
        ValueError: As :func:`mmasr.attach`.
    """
    model = MODELS.build(backbone)
    _attach(model, {'sites': sites, **asr})
    if hasattr(model, 'init_weights'):
        model.__class__ = mixed_class(_Mixin, type(model))
    return model


@MODELS.register_module()
def WithoutAttention(network: dict, modules: Sequence[str], **options) -> nn.Module:
    """Build any registered network and take some of its attention modules out: those whose mean was folded after training.

    Args:
        network (dict): Config of the network, of any registry that mmengine knows.
        modules (Sequence[str]): Names of the modules.
        **options: Further arguments of the network, which a runner may add.

    Raises:
        AttributeError: If there is no such module.
    """
    model = MODELS.build({**network, **options})
    for name in modules:
        model.get_submodule(name)  # set_submodule would make a new one
        model.set_submodule(name, nn.Identity())
    return model
