"""Mixin and functions that all backbones with re-parameterization share."""

from mmengine.model import PretrainedInit
from torch import nn

from ...core.attach import attach
from ...core.class_surgery import Mixin, stock_class
from ...core.host import Host, find_reparameterizations
from ...core.reparameterization import resolve
from ...errors import InputError


class WithASR(Mixin):
    """Mixin that adds ``asr`` and ``convs`` to a backbone.

    It comes before the stock class among the bases, and the attribute ``stock`` names that class too.

    Args:
        *args: Arguments of the stock backbone.
        asr (dict, optional): ``attention`` and the other options of :func:`mmasr.attach`. Default: None, no
            ASR.
        convs (dict, optional): ``type`` and options of a re-parameterized convolution, such as
            ``dict(type='ACNet')``; ``sites`` as in :func:`mmasr.attach`. Default: None, the stock
            convolutions.
        **kwargs: Arguments of the stock backbone.
    """

    def __init__(self, *args, asr: dict | None = None, convs: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attach_all(self, asr, convs)

    def init_weights(self, *args, **kwargs) -> None:
        """Initialize the backbone, and then its re-parameterizations with their own initial values.

        ``init_cfg`` does not reach into the children of hosts. Weights that it loads stay, those of an ASR
        included.

        Args:
            *args: Arguments of the stock backbone's ``init_weights``.
            **kwargs: More of them.
        """
        if _is_pretrained(getattr(self, 'init_cfg', None)):
            super().init_weights(*args, **kwargs)
            return
        children = [(host, host.reparameterization()) for host in self.modules() if isinstance(host, Host)]
        for host, child in children:
            del host._modules[child.attribute]
        super().init_weights(*args, **kwargs)
        for host, child in children:
            setattr(host, child.attribute, child)
        for _, layer, reparameterization in find_reparameterizations(self):
            reparameterization.init_weights()
            reparameterization.init_layer(layer)

    @classmethod
    def deployed_config(cls, config: dict, network: nn.Module | None) -> dict:
        """Return the config of the backbone once everything is folded.

        Args:
            config (dict): Its config.
            network (nn.Module, optional): The folded backbone, if it is known.

        Returns:
            dict: The config of the stock backbone. If some convolutions remain layers of mmasr, its own
            config without what is folded.
        """
        rest, stock = without_folded(config, network), stock_class(cls)
        if stock is cls or 'convs' in rest:  # a user's subclass, or mmasr's class for the remaining layers
            return rest
        rest.pop('_scope_', None)
        return {**rest, 'type': f'{stock.__module__.split(".")[0]}.{stock.__name__}'}


def attach_all(model: nn.Module, asr: dict | None, convs: dict | None) -> None:
    """Insert ASR and re-parameterized convolutions into a network, and freeze them in its frozen parts.

    Args:
        model (nn.Module): The network.
        asr (dict, optional): See :class:`WithASR`.
        convs (dict, optional): See :class:`WithASR`.

    Raises:
        InputError: If ``asr`` or ``convs`` is not a dict, or ``asr`` lacks ``attention``; see also
            :func:`mmasr.attach`.
    """
    _check_options(asr, convs)
    frozen = {name for name, m in model.named_modules() if not any(p.requires_grad for p in m.parameters())}
    if asr is not None:  # before the convolutions, whose own normalizations are not sites
        _attach(model, {'type': 'ASR', **asr})
    if convs is not None:
        _attach(model, convs)
    for name, _, reparameterization in find_reparameterizations(model):
        if name and name.rpartition('.')[0] in frozen:
            reparameterization.requires_grad_(False)


def _check_options(asr: dict | None, convs: dict | None) -> None:
    if asr is not None and (not isinstance(asr, dict) or not {'attention', 'type'} & set(asr)):
        raise InputError(f"asr must be a dict such as dict(attention=dict(type='SE')), not {asr!r}")
    if convs is not None and not isinstance(convs, dict):
        raise InputError(f"convs must be a dict such as dict(type='OREPA'), not {convs!r}")


def _attach(model: nn.Module, options: dict) -> None:
    attach(model, {key: value for key, value in options.items() if key != 'sites'}, options.get('sites'))


def without_folded(config: dict, network: nn.Module | None) -> dict:
    """Return the config of a backbone of mmasr without what is folded.

    Args:
        config (dict): See :meth:`WithASR.deployed_config`.
        network (nn.Module, optional): See :meth:`WithASR.deployed_config`.

    Returns:
        dict: The config without ``asr``, and with ``convs`` only if the folded layers are layers of mmasr.
    """
    rest = {key: value for key, value in config.items() if key not in ('asr', 'convs')}
    if convs := config.get('convs'):
        kind, _ = resolve(convs)
        if remaining := kind.deployed_options(convs, network):
            rest['convs'] = remaining
    return rest


def _is_pretrained(init_cfg: dict | list | None) -> bool:
    """Return whether an ``init_cfg`` loads weights, by the same test as mmengine's BaseModule."""
    init_cfgs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return any(
        isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit) for cfg in init_cfgs
    )
