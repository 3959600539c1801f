"""ASR: an attention module κ fed with a learnable vector ψ, whose output scales a layer. Needs torch only.

Zhong, Huang et al., "Stripe Observation Guided Inference Cost-free Attention Mechanism", ECCV 2024,
https://arxiv.org/abs/2304.06345.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from ..attention import ATTENTIONS, ChannelAttention, build_attention
from ..attention.base import batch_kind
from .computed import Computed
from .known import find_sites, find_transformer_sites, no_sites
from .probe import check_scales
from .scaling import alike, check_scalable, output_channels, output_layers, scaled, scaled_together


def for_transformer(options: dict) -> dict:
    """Options of an ASR with what the paper gives it in a vision transformer where they say nothing else: the gate is tanh, and
    ψ and every parameter of κ start at 1e-3.

    Args:
        options (dict): ``attention`` and the other options of :class:`ASR`.

    Returns:
        dict: The options; as they were with a κ of one's own, which has its own gate, and with ``init_identity``, which tanh
        can't have.
    """
    attention = options['attention']
    name = str(attention.get('type')).removeprefix('mmasr.') if isinstance(attention, dict) else None
    kappa = ATTENTIONS.get(name)
    gated = isinstance(kappa, type) and issubclass(kappa, ChannelAttention)
    if not gated or options.get('init_identity') or attention.get('init_identity'):
        return options
    return {'psi': 1e-3, 'init': 1e-3, **options, 'attention': {'gate': 'tanh', **attention}}


class ASR(Computed):
    """Learns one scale per channel, v = ∏ᵢ κᵢ(ψᵢ), which is a constant once training ends.

    Its state dict holds ``psi``, ``attention.*`` and ``initial``, the scale to divide by: all ones, or with
    ``init_identity`` the scale at the start. A checkpoint brings its own ``initial`` along, so it means the
    same network whatever the option says where it is loaded.

    Args:
        attention (dict | callable): κ: a config such as ``dict(type='SE', ratio=16)``, or a callable
            ``channels -> module`` whose module has ``weights``: (N, C, H, W) -> (N, C, 1, 1).
        channels (int): Number of channels C.
        delta (int): Number δ of attention modules, each with its own ψ (the paper's Table 7). Default: 1.
        psi (float | dict): Initial value of every element of ψ, or ``dict(std=s)`` to draw them from N(0, s²)
            (the paper's Tables 8 and 13). Default: 0.1.
        init (float, optional): Initial value of every parameter of κ. Default: the initial values that κ has by itself.
        learnable (bool): Whether ψ is trained, or stays as drawn (the paper's Table 8). Default: True.
        init_identity (bool): Scale by v(ψ) / v(ψ₀) with ψ₀ the initial state, exactly 1 at the start, so that
            ASR can be put into a pretrained network. Default: False, since the paper trains from scratch.

    Raises:
        ValueError: If κ has no constant per channel (CBAM, or weights of another shape), if δ < 1, or if
            ``init_identity`` would divide by almost nothing.

    Example:
        >>> import mmasr
        >>> asr = mmasr.ASR(dict(type='SE'), channels=8, delta=2)
        >>> asr.psi.shape, asr.scale().shape
        (torch.Size([2, 8]), torch.Size([8]))
        >>> mmasr.ASR(dict(type='SE'), channels=8, init_identity=True).scale().tolist() == [1] * 8
        True
    """

    child = 'asr'
    title = 'ASR'

    def __init__(
        self,
        attention: dict | Callable[[int], nn.Module],
        channels: int,
        delta: int = 1,
        psi: float | dict = 0.1,
        init: float | None = None,
        learnable: bool = True,
        init_identity: bool = False,
    ) -> None:
        super().__init__()
        if delta < 1:
            raise ValueError(f'delta is the number of attention modules, at least 1, not {delta}')
        self.attention = nn.ModuleList(build_attention(attention, channels) for _ in range(delta))
        name = type(self.attention[0]).__name__
        if getattr(self.attention[0], 'spatial', False):
            raise ValueError(
                f"ASR({name}) is impossible: {name}'s spatial map differs for every image and position, so it never "
                f'becomes a constant per channel (section 7 of the paper); use {name} as ordinary attention'
            )
        if not hasattr(self.attention[0], 'weights'):
            raise ValueError(f'{name} has no method weights: (N, C, H, W) -> (N, C, 1, 1)')
        self.psi_init = psi
        self.init = init
        self.init_identity = init_identity
        values = torch.empty(delta, channels)
        if learnable:
            self.psi = nn.Parameter(values)
        else:
            self.register_buffer('psi', values)
        self.register_buffer('initial', torch.ones(channels))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Give ψ and κ their initial values, and note the scale they give. Needed again after anything that
        initialises the surrounding network from outside, as OpenMMLab's ``init_cfg`` does."""
        if isinstance(self.psi_init, dict):
            nn.init.normal_(self.psi, std=self.psi_init['std'])
        else:
            nn.init.constant_(self.psi, self.psi_init)
        for attention in self.attention:
            if hasattr(attention, 'init_weights'):
                attention.init_weights()
            else:
                for module in attention.modules():
                    if hasattr(module, 'reset_parameters'):
                        module.reset_parameters()
        if self.init is not None:
            for parameter in self.attention.parameters():
                nn.init.constant_(parameter, self.init)
        for psi, attention in zip(self.psi, self.attention, strict=True):
            values = attention.weights(psi[None, :, None, None])
            if values.shape != (1, len(psi), 1, 1):
                raise ValueError(
                    f'{type(attention).__name__}.weights gave {tuple(values.shape)} for {len(psi)} channels; ASR needs one '
                    f'value per channel, {(1, len(psi), 1, 1)}'
                )
            if self.init_identity and values.abs().min() < 1e-2:
                raise ValueError(
                    f'init_identity divides by the initial values of {type(attention).__name__}, which are almost 0 here '
                    f'(smallest: {values.abs().min():.0e}); leave it off for this attention and psi'
                )
        self.initial.fill_(1)
        if self.init_identity:
            self.initial.copy_(self.scale())

    def scale(self) -> torch.Tensor:
        """The scale v of shape (C,), in float32 (or the parameters' own type) under autocast too."""
        with torch.autocast(self.psi.device.type, enabled=False):
            maps = self.psi.view(len(self.psi), 1, -1, 1, 1).unbind()
            values = [attention.weights(psi) for psi, attention in zip(maps, self.attention, strict=True)]
            return functools.reduce(torch.mul, values).flatten() / self.initial

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply a feature map (N, C, ...) by the scale: the paper's form, for a place without a host."""
        v = self.scale().to(x.dtype)
        return x * v.view(-1, *[1] * (x.dim() - 2))

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """A layer's parameters per output channel, multiplied by the scale; see :func:`mmasr.core.scaling.scaled`."""
        return scaled(layer, self.scale())

    @classmethod
    def together(cls, hosts: Sequence[nn.Module]) -> dict[nn.Module, dict[str, torch.Tensor]]:
        """The tensors of all layers whose κ can be computed together, in groups that are alike."""
        groups = defaultdict(list)
        for host in hosts:
            groups[host.asr._alike(host)].append(host)
        groups.pop(None, None)
        result = {}
        for group in groups.values():
            if len(group) > 1:
                group.sort(key=lambda host: host.asr.psi.shape[1])  # those of one width are computed as one
                result.update(zip(group, scaled_together(group, _scales([host.asr for host in group])), strict=True))
        return result

    def _alike(self, layer: nn.Module) -> Hashable:
        psi, (first, *others) = self.psi, self.attention
        kind = batch_kind(first)
        if kind is None or any(batch_kind(other) != kind or _shapes(other) != _shapes(first) for other in others):
            return None
        return kind, len(psi), psi.dtype, psi.device, alike(layer)

    def describe(self) -> str:
        """The kinds of its attention modules, such as ``SE x SE``."""
        return ' x '.join(type(attention).__name__ for attention in self.attention)

    sites = staticmethod(find_sites)
    no_sites = staticmethod(no_sites)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Raise a ValueError, with the layer's name, if a layer has nothing to scale, or its output does not scale with it."""
        check_scalable(name, layer)
        check_scales(name, layer)

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """The options at each of some layers: at the paper's sites in a vision transformer those of :func:`for_transformer`."""
        transformer = find_transformer_sites(model)
        return {name: for_transformer(options) if name in transformer else options for name in names}

    @classmethod
    def of(cls, layer: nn.Module, **options) -> 'ASR':
        """Make an ASR for a layer that can be scaled, of its device and dtype."""
        weight = next(iter(output_layers(layer).values())).weight
        return cls(channels=output_channels(layer), **options).to(weight)


def _shapes(attention: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in attention.parameters()]


def _scales(asrs: Sequence[ASR]) -> torch.Tensor:
    """The scales of ASRs that are alike, of shape (ΣC,)."""
    with torch.autocast(asrs[0].psi.device.type, enabled=False):
        psi = torch.cat([asr.psi for asr in asrs], dim=1)
        modules = [asr.attention[row] for row in range(len(psi)) for asr in asrs]
        values = modules[0].gated(type(modules[0]).logits_of(modules, psi))
        return functools.reduce(torch.mul, values.unbind()) / torch.cat([asr.initial for asr in asrs])
