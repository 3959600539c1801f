"""ASR: an attention module κ, fed with a learnable vector ψ, whose output scales a layer. Needs torch only.

Zhong, Huang et al., "Stripe Observation Guided Inference Cost-free Attention Mechanism", ECCV 2024,
https://arxiv.org/abs/2304.06345.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..attention import ATTENTIONS, ChannelAttention, build_attention, registered_name
from ..attention.base import batch_key
from ..errors import InputError
from .compat import has_values, without_autocast
from .reparameterization import REPARAMETERIZATIONS, ParameterReparameterization
from .scale_check import check_output_scales
from .scaling import batch_key as layer_batch_key
from .scaling import channel_dim, check_scalable, output_channels, output_layers, prepare_scaled, scaled
from .sites import find_sites, find_transformer_sites, no_sites


def for_transformer(options: dict) -> dict:
    """Return the options of an ASR with the paper's defaults for a vision transformer.

    There the gate is tanh, and ψ and all parameters of κ start at 1e-3.

    Args:
        options (dict): ``attention`` and the other options of :class:`ASR`.

    Returns:
        dict: The options, completed by these defaults. They are unchanged if κ is a custom module, which has
            its own gate, or with ``init_identity``, which is impossible with tanh.
    """
    attention = options.get('attention')
    kappa = ATTENTIONS.get(registered_name(attention))
    gated = isinstance(kappa, type) and issubclass(kappa, ChannelAttention)
    if not gated or options.get('init_identity') or attention.get('init_identity'):
        return options
    return {'psi': 1e-3, 'init': 1e-3, **options, 'attention': {'gate': 'tanh', **attention}}


class ASR(ParameterReparameterization):
    """One learned scale per channel, v = ∏ᵢ κᵢ(ψᵢ), which is constant once training ends.

    The state dict contains ``psi``, ``attention.*`` and ``initial``, the scale that v is divided by: all
    ones, or the scale at the start with ``init_identity``. A checkpoint includes ``initial``, so it means the
    same network whichever options it is loaded with.

    Args:
        attention (dict | callable): κ: a config such as ``dict(type='SE', ratio=16)``, or a callable
            ``channels -> module``. The module has ``weights``: (N, C, H, W) -> (N, C, 1, 1).
        channels (int): Number of channels C.
        delta (int): Number δ of attention modules, each with its own ψ (the paper's Table 7). Default: 1.
        psi (float | dict): Initial value of every element of ψ, or ``dict(std=s)`` to draw them from N(0, s²)
            (the paper's Tables 8 and 13). Default: 0.1.
        init (float, optional): Initial value of every parameter of κ. Default: the initial values of κ
            itself.
        learnable (bool): Whether ψ is trained (the paper's Table 8). Default: True.
        init_identity (bool): Scale by v(ψ) / v(ψ₀), where ψ₀ is the initial state. The scale is exactly 1 at
            the start, so that ASR can be inserted into a pretrained network. Default: False, since the paper
            trains from scratch.

    Raises:
        InputError: If κ has no constant per channel (CBAM, or weights of another shape), if δ < 1, or if
            ``init_identity`` would divide by almost 0.

    Example:
        >>> import mmasr
        >>> asr = mmasr.ASR(dict(type='SE'), channels=8, delta=2)
        >>> asr.psi.shape, asr.scale().shape
        (torch.Size([2, 8]), torch.Size([8]))
        >>> mmasr.ASR(dict(type='SE'), channels=8, init_identity=True).scale().tolist() == [1] * 8
        True
    """

    attribute = 'asr'
    state_dict_marker = 'asr'
    title = 'ASR'
    verified_in_double = False  # a scale may be close to 0

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
        if not isinstance(delta, int) or delta < 1:
            raise InputError(
                f'delta is the number of attention modules and must be at least 1, not {delta!r}'
            )
        self.attention = nn.ModuleList(build_attention(attention, channels) for _ in range(delta))
        name = type(self.attention[0]).__name__
        if getattr(self.attention[0], 'spatial', False):
            raise InputError(
                f"ASR({name}) is impossible: {name}'s spatial map differs for every image and position, so "
                'it never '
                f'becomes a constant per channel (section 7 of the paper); use {name} as ordinary attention'
            )
        if not hasattr(self.attention[0], 'weights'):
            raise InputError(f'{name} has no method weights: (N, C, H, W) -> (N, C, 1, 1)')
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
        """Set the initial values of ψ and κ, and record the scale that they give.

        Call it again after anything that initializes the whole network from outside, such as OpenMMLab's
        ``init_cfg``.

        Raises:
            InputError: If κ gives another shape, or ``init_identity`` would divide by almost 0.
        """
        if isinstance(self.psi_init, dict):
            nn.init.normal_(self.psi, std=self.psi_init['std'])
        else:
            nn.init.constant_(self.psi, self.psi_init)
        for attention in self.attention:
            _init_attention(attention)
        if self.init is not None:
            for parameter in self.attention.parameters():
                nn.init.constant_(parameter, self.init)
        for psi, attention in zip(self.psi, self.attention, strict=True):
            values = attention.weights(psi[None, :, None, None])
            if values.shape != (1, len(psi), 1, 1):
                raise InputError(
                    f'{type(attention).__name__}.weights gave {tuple(values.shape)} for {len(psi)} channels; '
                    f'ASR needs one value per channel, {(1, len(psi), 1, 1)}'
                )
            if self.init_identity and has_values(values) and values.abs().min() < 1e-2:
                raise InputError(
                    f'init_identity divides by the initial values of {type(attention).__name__}, which are '
                    f'almost 0 (smallest: {values.abs().min():.0e}); turn it off for this attention and psi'
                )
        self.initial.fill_(1)
        if self.init_identity:
            self.initial.copy_(self.scale())

    def scale(self) -> torch.Tensor:
        """Return the scale v of shape (C,), in float32 (or the parameters' own type) even under autocast."""
        with without_autocast(self.psi.device):
            maps = self.psi.view(len(self.psi), 1, -1, 1, 1).unbind()
            values = [attention.weights(psi) for psi, attention in zip(maps, self.attention, strict=True)]
            return functools.reduce(torch.mul, values).flatten() / self.initial

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args) -> None:
        # All or nothing: divided by the initial values of another κ, the scale would be meaningless.
        own = {prefix + name: parameter.shape for name, parameter in self.named_parameters()}
        if any(key not in state_dict or state_dict[key].shape != shape for key, shape in own.items()):
            for key in [prefix + name for name in self.state_dict() if prefix + name in state_dict]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply a feature map (N, C, ...) by the scale: the paper's form, for a place without a host."""
        v = self.scale().to(x.dtype)
        return x * v.view(-1, *[1] * (x.dim() - 2))

    def effective_parameters(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Return the layer's parameters times the scale; see :func:`mmasr.core.scaling.scaled`."""
        return scaled(layer, self.scale())

    def paper_form(self, layer: nn.Module, output: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        """Multiply the layer's output by every κᵢ(ψᵢ), and divide it by the initial scale.

        Args:
            layer (nn.Module): The layer.
            output (Tensor): The output of the stock layer with its own parameters.
            *args (Tensor): The layer's inputs, which do not matter.

        Returns:
            Tensor: The output.
        """
        shape = [1] * output.dim()
        shape[channel_dim(layer, output, *args)] = -1
        for row, attention in enumerate(self.attention):
            psi = self.psi[row].reshape(1, -1, 1, 1)
            output = output * attention.weights(psi).reshape(shape)
        return output / self.initial.reshape(shape)

    @classmethod
    def batch_key(cls, layer: nn.Module) -> Hashable:
        """Return a key that is equal for layers whose κ and own parameters can be batched.

        Their widths may differ.

        Args:
            layer (nn.Module): A host of an ASR.
        """
        asr = layer.asr
        psi, (first, *others) = asr.psi, asr.attention
        key = batch_key(first)
        if key is None or any(
            batch_key(other) != key or _shapes(other) != _shapes(first) for other in others
        ):
            return None
        # A frozen host stays without gradients.
        trains = any(parameter.requires_grad for parameter in layer.parameters())
        return key, len(psi), psi.dtype, psi.device, trains, layer_batch_key(layer)

    @classmethod
    def prepare_batch(
        cls, layers: Sequence[nn.Module]
    ) -> Callable[[], dict[nn.Module, dict[str, torch.Tensor]]]:
        """Prepare to compute the effective parameters of several hosts.

        Args:
            layers (Sequence[nn.Module]): Hosts with the same :meth:`batch_key`.

        Returns:
            callable: Returns host -> its effective parameters.
        """
        layers = sorted(layers, key=lambda layer: layer.asr.psi.shape[1])  # equal widths are computed as one
        scales, products = _prepare_scales([layer.asr for layer in layers]), prepare_scaled(layers)
        return lambda: dict(zip(layers, products(scales()), strict=True))

    def describe(self) -> str:
        """Return the classes of its attention modules, such as ``SE x SE``."""
        return ' x '.join(type(attention).__name__ for attention in self.attention)

    @classmethod
    def check(cls, name: str, layer: nn.Module) -> None:
        """Check that a layer has parameters to scale, and that its output scales with them.

        Args:
            name (str): Name of the layer, for the error.
            layer (nn.Module): Any module.

        Raises:
            InputError: If it does not.
        """
        check_scalable(name, layer)
        check_output_scales(name, layer)

    @classmethod
    def default_sites(cls, model: nn.Module) -> list[str]:
        """Return the paper's sites; see :func:`mmasr.core.sites.find_sites`."""
        return find_sites(model)

    @classmethod
    def no_sites(cls, model: nn.Module) -> str:
        """Return why a network has no default sites; see :func:`mmasr.core.sites.no_sites`."""
        return no_sites(model)

    @classmethod
    def options_at(cls, model: nn.Module, names: Sequence[str], options: dict) -> dict[str, dict]:
        """Return the options at each site: those of :func:`for_transformer` at the paper's sites in a ViT.

        Args:
            model (nn.Module): The network.
            names (Sequence[str]): Names of the sites.
            options (dict): The options that the user gave.

        Returns:
            dict[str, dict]: Site -> options.

        Raises:
            InputError: If a site is a frozen normalization; the message names the sites that work.
        """
        _refuse_frozen(model, names)
        transformer = find_transformer_sites(model)
        return {name: for_transformer(options) if name in transformer else options for name in names}

    @classmethod
    def from_layer(cls, layer: nn.Module, **options) -> 'ASR':
        """Make an ASR for a layer.

        Args:
            layer (nn.Module): A layer that :meth:`check` accepts.
            **options: Options of :class:`ASR`, without ``channels``.

        Returns:
            ASR: On the layer's device and of its dtype.

        Raises:
            InputError: If the options are not supported.
        """
        weight = next(iter(output_layers(layer).values())).weight
        return cls(channels=output_channels(layer), **options).like(weight)


REPARAMETERIZATIONS['ASR'] = ASR


def _init_attention(attention: nn.Module) -> None:
    if hasattr(attention, 'init_weights'):
        attention.init_weights()
        return
    for module in attention.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()


def _refuse_frozen(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse frozen normalizations, of torchvision, timm and Hugging Face, and name other sites."""
    modules = dict(model.named_modules())
    frozen = [name for name in names if 'FrozenBatchNorm' in type(modules[name]).__name__]
    if not frozen:
        return
    layers = [name for name, module in modules.items() if name in frozen or isinstance(module, _ConvNd)]
    before = {name: layer for layer, name in itertools.pairwise(layers) if name in frozen}
    raise InputError(
        f'{frozen[0]} ({type(modules[frozen[0]]).__name__}) has constants and nothing to train; use the '
        f'convolution before it: pass sites={[before.get(name, name) for name in names]}'
    )


def _shapes(attention: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in attention.parameters()]


def _prepare_scales(asrs: Sequence[ASR]) -> Callable[[], torch.Tensor]:
    """Prepare to compute the scales of ASRs with equal batch keys, of shape (ΣC,)."""
    psi, initial = [asr.psi for asr in asrs], [asr.initial for asr in asrs]
    modules = [asr.attention[row] for row in range(len(psi[0])) for asr in asrs]
    first = modules[0]
    logits = type(first).prepare_logits(modules, len(psi[0]))

    def compute() -> torch.Tensor:
        with without_autocast(psi[0].device):
            values = first.gated(logits(torch.cat(psi, dim=1)))
            return functools.reduce(torch.mul, values.unbind()) / torch.cat(initial)

    return compute
