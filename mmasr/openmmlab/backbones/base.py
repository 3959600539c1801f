"""What every backbone with re-parameterization has in common, registered or wrapped."""

from mmengine.model import PretrainedInit
from torch import nn

from ...core.attach import CONVOLUTIONS, attach
from ...core.host import Host
from ...core.merge import Merging
from ...core.surgery import Mixed, stock_class


class WithASR(Mixed):
    """Adds ``asr`` and ``convs`` to a backbone; to be named before the stock class among the bases, which ``stock`` names too.

    Args:
        *args: The arguments of the stock backbone.
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`. Default: None, no ASR.
        convs (dict, optional): ``type`` and the options of a convolution that trains with branches, such as
            ``dict(type='ACNet')``; ``sites`` as in :func:`mmasr.attach`. Default: None, the stock convolutions.
        **kwargs: The arguments of the stock backbone.
    """

    def __init__(self, *args, asr: dict | None = None, convs: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attach_all(self, asr, convs)

    def init_weights(self, *args, **kwargs) -> None:
        """Initialise the backbone, without reaching into what its parameters are computed from, which then gets its own initial
        values. Weights that ``init_cfg`` loads stay, those of an ASR included."""
        if _is_pretrained(getattr(self, 'init_cfg', None)):
            super().init_weights(*args, **kwargs)
            return
        children = [(host, host.computed()) for host in self.modules() if isinstance(host, Host)]
        for host, computed in children:
            del host._modules[computed.child]
        super().init_weights(*args, **kwargs)
        for host, computed in children:
            setattr(host, computed.child, computed)
        for module in self.modules():
            if isinstance(module, Host | Merging):
                module.init_weights()

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> dict:
        """What its config becomes once everything is folded.

        Args:
            config (dict): Its config.
            network (nn.Module, optional): The folded backbone, where that is known.

        Returns:
            dict: That of the stock backbone; or, with convolutions that stay layers of ours, its own without what is folded.
        """
        rest, stock = without_folded(config, network), stock_class(cls)
        if stock is cls or 'convs' in rest:  # a subclass of a user's own, or of ours for what is left
            return rest
        rest.pop('_scope_', None)
        return {**rest, 'type': f'{stock.__module__.split(".")[0]}.{stock.__name__}'}


def attach_all(model: nn.Module, asr: dict | None, convs: dict | None) -> None:
    """Put ASR and convolutions with branches into a network, and freeze what is put into what is frozen.

    Args:
        model (nn.Module): The network.
        asr (dict, optional): As of :class:`WithASR`.
        convs (dict, optional): As of :class:`WithASR`.

    Raises:
        ValueError: As :func:`mmasr.attach`.
    """
    frozen = {name for name, m in model.named_modules() if not any(p.requires_grad for p in m.parameters())}
    if asr is not None:  # before the convolutions, whose own normalizations are no sites
        attach(model, **asr)
    if convs is not None:
        sites = convs.get('sites')
        attach(model, {key: value for key, value in convs.items() if key != 'sites'}, sites)
    for name, module in model.named_modules():
        if name.rpartition('.')[0] in frozen:
            if isinstance(module, Host):
                module.computed().requires_grad_(False)
            elif isinstance(module, Merging):
                module.requires_grad_(False)


def without_folded(config: dict, network: nn.Module | None) -> dict:
    """The config of a backbone of ours once everything is folded: without ``asr``, and with ``convs`` only if what they become
    are layers of ours. Arguments as of :meth:`WithASR.deployed_config`."""
    rest = {key: value for key, value in config.items() if key not in ('asr', 'convs')}
    convs = config.get('convs')
    if convs and (left := CONVOLUTIONS[convs['type'].removeprefix('mmasr.')].deployed(convs, network)):
        rest['convs'] = left
    return rest


def _is_pretrained(init_cfg: dict | list | None) -> bool:
    """Whether an ``init_cfg`` loads weights, by the test of mmengine's BaseModule."""
    init_cfgs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return any(isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit) for cfg in init_cfgs)
