"""Mixin and functions that all backbones with re-parameterization share."""

import re
from collections.abc import Sequence

from mmengine.model import PretrainedInit
from torch import nn

from ...core.attach import attach_in_order
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
        convs (dict | Sequence[dict], optional): ``type`` and options of a re-parameterized convolution, such
            as ``dict(type='ACNet')``; ``sites`` as in :func:`mmasr.attach`. Several dicts are inserted in
            order; see :func:`mmasr.core.attach.attach_in_order`. Default: None, the stock convolutions.
        **kwargs: Arguments of the stock backbone.
    """

    def __init__(
        self, *args, asr: dict | None = None, convs: dict | Sequence[dict] | None = None, **kwargs
    ) -> None:
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


def attach_all(model: nn.Module, asr: dict | None, convs: dict | Sequence[dict] | None) -> None:
    """Insert ASR and re-parameterized convolutions into a network, and freeze them in its frozen parts.

    Args:
        model (nn.Module): The network.
        asr (dict, optional): See :class:`WithASR`.
        convs (dict | Sequence[dict], optional): See :class:`WithASR`.

    Raises:
        InputError: If ``asr`` is not a dict or lacks ``attention``, ``convs`` is neither a dict nor a
            sequence of dicts, or two of these have the same site; see also :func:`mmasr.attach`.
    """
    _check_options(asr, convs)
    frozen = {name for name, m in model.named_modules() if not any(p.requires_grad for p in m.parameters())}
    if asr is not None:  # before the convolutions, whose own normalizations are not sites
        attach_in_order(model, [{'type': 'ASR', **asr}])
    if convs is not None:
        attach_in_order(model, [convs] if isinstance(convs, dict) else convs)
    for name, _, reparameterization in find_reparameterizations(model):
        if name and name.rpartition('.')[0] in frozen:
            reparameterization.requires_grad_(False)


def _check_options(asr: dict | None, convs: dict | Sequence[dict] | None) -> None:
    if asr is not None and (not isinstance(asr, dict) or not {'attention', 'type'} & set(asr)):
        raise InputError(f"asr must be a dict such as dict(attention=dict(type='SE')), not {asr!r}")
    entries = convs if isinstance(convs, list | tuple) and convs else [convs]
    if convs is not None and not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"convs must be a dict such as dict(type='OREPA'), or a list of such dicts, not {convs!r}"
        )


def without_folded(config: dict, network: nn.Module | None) -> dict:
    """Return the config of a backbone of mmasr without what is folded.

    Args:
        config (dict): See :meth:`WithASR.deployed_config`.
        network (nn.Module, optional): See :meth:`WithASR.deployed_config`.

    Returns:
        dict: The config without ``asr``, and with ``convs`` only for folded layers that are layers of mmasr.
    """
    rest = {key: value for key, value in config.items() if key not in ('asr', 'convs')}
    convs = config.get('convs')
    entries = convs if isinstance(convs, list | tuple) else [convs] if convs else []
    deployed = [resolve(entry)[0].deployed_options(entry, network) for entry in entries]
    if network is not None and len(entries) > 1:
        deployed = [
            options and _at_own_sites(options, entries, index, network)
            for index, options in enumerate(deployed)
        ]
    if remaining := [options for options in deployed if options]:
        rest['convs'] = remaining[0] if isinstance(convs, dict) else remaining
    return rest


def _at_own_sites(options: dict, entries: Sequence[dict], index: int, network: nn.Module) -> dict | None:
    """Return the options of a deployed entry with only those of its ``sites`` that were its own in training.

    Two entries of one kind deploy as layers of the same class. An entry without ``sites`` has the layers that
    no other entry names.
    """
    if not isinstance(options.get('sites'), list):
        return options
    modules = dict(network.named_modules(remove_duplicate=False))
    named = [
        {modules[name] for name in modules if _names(entry['sites'], name)} if entry.get('sites') else None
        for entry in entries
    ]
    others = set().union(*filter(None, named))
    own = named[index]
    sites = [
        name
        for name in options['sites']
        if (modules[name] in own if own is not None else modules[name] not in others)
    ]
    return {**options, 'sites': sites} if sites else None


def _names(sites: str | Sequence[str], name: str) -> bool:
    return bool(re.fullmatch(sites, name)) if isinstance(sites, str) else name in sites


def _is_pretrained(init_cfg: dict | list | None) -> bool:
    """Return whether an ``init_cfg`` loads weights, by the same test as mmengine's BaseModule."""
    init_cfgs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return any(
        isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit) for cfg in init_cfgs
    )
