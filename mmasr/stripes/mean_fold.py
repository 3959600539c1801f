"""Fold ordinary attention after training: replace it by its mean, and fold the mean into a host.

This is not in the paper. It is exact only as far as the Stripe Observation holds, so the loss must be
measured. Needs torch only.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, MutableMapping

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..core.asr import ASR
from ..core.attach import attach
from ..core.class_surgery import replace_module
from ..core.fold import fold
from ..core.foldable import find_foldable
from ..core.scaling import output_channels
from ..errors import InputError
from .modules import ValueReader, attention_modules


class Constant(nn.Module):
    """Attention with given values, which do not depend on the image.

    Args:
        v (Tensor): Attention values of shape (C,).
    """

    def __init__(self, v: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer('v', v)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to attention values (N, C, 1, 1), the same for every image."""
        return self.v.view(1, -1, 1, 1).expand(*x.shape[:2], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, ...) by the attention values."""
        return x * self.v.view(-1, *[1] * (x.dim() - 2))


@contextlib.contextmanager
def replaced(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Replace modules of a network while the context is active.

    Args:
        model (nn.Module): The network.
        modules (dict[str, nn.Module]): Name of a module in it -> its replacement.
    """
    originals = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            replace_module(model, name, module)
        yield
    finally:
        for name, module in originals.items():
            replace_module(model, name, module)


@dataclasses.dataclass
class _Source:
    """Origin of a tensor.

    Attributes:
        layer (nn.Module): The layer that output the tensor, apart from the modules in ``passed``.
        args (tuple, optional): Arguments of the layer, if it may be a host.
        passed (tuple): Modules that the tensor has passed since, through which a positive scale passes as
            well.
        before (_Source, optional): Origin of the tensor before it passed the last of them.
        readers (int): Number of modules that received the tensor.
    """

    layer: nn.Module
    args: tuple | None
    passed: tuple[nn.Module, ...] = ()
    before: '_Source | None' = None
    readers: int = 0

    def has_one_reader(self) -> bool:
        return self.readers == 1 and (self.before is None or self.before.has_one_reader())


class _Trace:
    """Hooks that trace one run of a network, and find the host of each attention module in ``means``."""

    def __init__(self, model: nn.Module, means: dict[str, torch.Tensor]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.attention = attention_modules(model)
        self.means = means
        #: Origin of every tensor that is still alive.
        self.sources: MutableMapping[torch.Tensor, _Source] = WeakTensorKeyDictionary()
        #: Name of a layer -> how often it ran.
        self.runs = collections.Counter()
        #: Name of a host -> origins of the tensors that attention modules received from it.
        self.uses: dict[str, list[_Source]] = collections.defaultdict(list)
        #: Name of an attention module -> its host, or the reason why it has none.
        self.found: dict[str, str | InputError] = {}
        attention = set(self.attention.values())
        inside = {module for outer in attention for module in outer.modules()} - attention
        self.handles = [
            module.register_forward_hook(self._after_layer)
            for module in self.names.keys() - inside
            if output_channels(module)
            or isinstance(module, ASR)
            or module in attention
            or not list(module.children())
        ]
        self.handles += [
            ValueReader(self.attention[name], functools.partial(self._after_attention, name), name)
            for name in means
        ]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _after_layer(self, module: nn.Module, args: tuple, output: object) -> None:
        self.runs[self.names[module]] += 1
        if not isinstance(output, torch.Tensor):
            return
        source = self.sources.get(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        if source:
            source.readers += 1
        if source and isinstance(module, nn.Identity | nn.ReLU | ASR):
            self.sources[output] = _Source(source.layer, source.args, (*source.passed, module), source)
        elif output_channels(module):
            # Copies, because later layers may write into the arguments in place.
            copies = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
            self.sources[output] = _Source(module, copies)
        else:
            self.sources[output] = _Source(module, None)

    def _after_attention(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> None:
        try:
            host = self._host(name, x, v, output)
            self.uses[host].append(self.sources[x])
        except InputError as error:
            host = error
        earlier = self.found.setdefault(name, host)
        if isinstance(earlier, str) and host != earlier:
            several = InputError(f'it follows {earlier} in one place, but not in another')
            self.found[name] = several if isinstance(host, str) else host

    def _host(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> str:
        """Return the name of the layer before an attention module.

        Raises:
            InputError: If the module has no host. The message starts with "it" or "its", the module.
        """

        def scaled_input(v: torch.Tensor) -> torch.Tensor:
            return x * v.view(-1, x.shape[1], *[1] * (x.dim() - 2))

        if not torch.allclose(output, scaled_input(v), rtol=1e-4, atol=1e-5):
            raise InputError('it does more than multiply its input by one value per channel')
        if x not in self.sources:
            raise InputError('its input does not come directly from a layer')
        source = self.sources[x]
        host = self.names[source.layer]
        kind = type(source.layer).__name__
        if source.layer in self.attention.values():
            raise InputError(f'it comes after {host}, which depends on the image')
        if source.args is None:
            raise InputError(f'its input comes from {host} ({kind}), which does not pass on a scale')
        mean = self.means[name]
        layer = attach(fold(copy.deepcopy(source.layer)), lambda channels: Constant(mean), sites=[''])
        result = layer(*source.args)
        for module in source.passed:
            result = module(result)
        expected = scaled_input(mean)
        if not torch.allclose(result, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()):
            raise InputError(f'scaling {host} ({kind}) does not scale the input of the module')
        return host


@torch.no_grad()
def find_hosts(
    model: nn.Module, means: dict[str, torch.Tensor], run: Callable[[], object]
) -> tuple[dict[str, str], dict[str, str]]:
    """Find the layer before each attention module, and check that scaling it can replace the module.

    The host of a module is the layer whose output the module receives, directly or through a ReLU. The
    network is traced while it runs.

    Args:
        model (nn.Module): A network in eval mode.
        means (dict[str, Tensor]): Name of an attention module -> the values that are to replace it, shape
            (C,).
        run (callable): Runs the network once.

    Returns:
        tuple[dict[str, str], dict[str, str]]: Name of a module in ``means`` -> name of its host; and for
        modules without a host, name -> the reason.
    """
    trace = _Trace(model, means)
    try:
        run()
    finally:
        trace.close()
    hosts, reasons = {}, {}
    for name in means:
        host = trace.found.get(name, 'it did not run')
        if name not in trace.found or isinstance(host, InputError):
            reasons[name] = str(host)
        elif trace.runs[host] != len(trace.uses[host]) or not all(
            source.has_one_reader() for source in trace.uses[host]
        ):
            reasons[name] = f'{host} also feeds something else'
        else:
            hosts[name] = host
    return hosts, reasons


def fold_means(model: nn.Module, means: dict[str, torch.Tensor], hosts: dict[str, str]) -> nn.Module:
    """Replace attention modules by their means and fold these into the hosts, as ASR is folded, in place.

    Args:
        model (nn.Module): A network without ASR.
        means (dict[str, Tensor]): Name of an attention module -> its mean values, shape (C,).
        hosts (dict[str, str]): Name of an attention module -> name of its host, from :func:`find_hosts`.

    Returns:
        nn.Module: ``model``, with an ``nn.Identity`` in place of each module.
    """
    for name, host in hosts.items():
        attach(model, lambda channels, name=name: Constant(means[name]), sites=[host])
        replace_module(model, name, nn.Identity())
    return fold(model, stay=find_foldable(model).branches)  # branches that are still there stay unmerged
