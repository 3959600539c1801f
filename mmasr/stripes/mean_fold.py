"""Folding attention that was trained as ordinary attention: its mean takes its place, and goes into its host.

Not in the paper. It is exact only as far as the Stripe Observation holds, so whoever folds must measure. Needs torch only.
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
from ..core.fold import fold
from ..core.scaling import output_channels
from ..core.surgery import replace, restore_classes
from .modules import ValueReader, attention_modules


class Constant(nn.Module):
    """Attention whose values are given.

    Args:
        v (Tensor): Values of shape (C,).
    """

    def __init__(self, v: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer('v', v)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, C, H, W) to attention values (N, C, 1, 1), the same for every image."""
        return self.v.view(1, -1, 1, 1).expand(*x.shape[:2], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply features (N, C, ...) by the values."""
        return x * self.v.view(-1, *[1] * (x.dim() - 2))


@contextlib.contextmanager
def replaced(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the place of some of a network's, by name, and take them out again at the end."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            replace(model, name, module)
        yield
    finally:
        for name, module in before.items():
            replace(model, name, module)


@dataclasses.dataclass
class _Source:
    """Where a tensor comes from.

    Attributes:
        layer (nn.Module): What put it out.
        args (tuple, optional): The layer's arguments, if it may be a host.
        passed (tuple): What it has passed since, and a positive scale passes too.
        before (_Source, optional): Of the tensor before it passed the last of them.
        readers (int): Number of modules that got it.
    """

    layer: nn.Module
    args: tuple | None
    passed: tuple[nn.Module, ...] = ()
    before: '_Source | None' = None
    readers: int = 0

    def has_one_reader(self) -> bool:
        return self.readers == 1 and (self.before is None or self.before.has_one_reader())


class _Trace:
    """Watches a network run once, and finds the host of each of some attention modules."""

    def __init__(self, model: nn.Module, means: dict[str, torch.Tensor]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.attention = attention_modules(model)
        self.means = means
        self.sources: MutableMapping[torch.Tensor, _Source] = WeakTensorKeyDictionary()  # of the tensors that are alive
        self.runs = collections.Counter()
        self.uses: dict[str, list[_Source]] = collections.defaultdict(list)
        self.found: dict[str, str | ValueError] = {}
        attention = set(self.attention.values())
        inside = {module for outer in attention for module in outer.modules()} - attention
        self.handles = [
            module.register_forward_hook(self._after_layer)
            for module in self.names.keys() - inside
            if output_channels(module) or isinstance(module, ASR) or module in attention or not list(module.children())
        ]
        self.handles += [
            ValueReader(self.attention[name], functools.partial(self._after_attention, name), name) for name in means
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
            # What follows may write into the arguments.
            self.sources[output] = _Source(module, tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args))
        else:
            self.sources[output] = _Source(module, None)

    def _after_attention(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> None:
        try:
            host = self._host(name, x, v, output)
            self.uses[host].append(self.sources[x])
        except ValueError as error:
            host = error
        before = self.found.setdefault(name, host)
        if isinstance(before, str) and host != before:
            self.found[name] = ValueError(f'it follows {before}, and elsewhere not') if isinstance(host, str) else host

    def _host(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> str:
        def times(v: torch.Tensor) -> torch.Tensor:
            return x * v.view(-1, x.shape[1], *[1] * (x.dim() - 2))

        if not torch.allclose(output, times(v), rtol=1e-4, atol=1e-5):
            raise ValueError('it does more than multiply its input by one value for every channel')
        if x not in self.sources:
            raise ValueError('its input does not come straight from a layer')
        source = self.sources[x]
        host = self.names[source.layer]
        if source.layer in self.attention.values():
            raise ValueError(f'it comes after {host}, which depends on the image')
        if source.args is None:
            raise ValueError(f'its input comes from {host} ({type(source.layer).__name__}), through which no scale passes')
        mean = self.means[name]
        result = attach(fold(copy.deepcopy(source.layer)), lambda channels: Constant(mean), sites=[''])(*source.args)
        for module in source.passed:
            result = module(result)
        expected = times(mean)
        if not torch.allclose(result, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()):
            raise ValueError(f'scaling {host} ({type(source.layer).__name__}) does not scale what it gets')
        return host


@torch.no_grad()
def find_hosts(
    model: nn.Module, means: dict[str, torch.Tensor], run: Callable[[], object]
) -> tuple[dict[str, str], dict[str, str]]:
    """Find the layer that each attention module follows, and check that scaling it does what the module would do.

    The network is watched while it runs: a host is the layer whose output the module gets, as it is or through a ReLU.

    Args:
        model (nn.Module): A network in eval mode.
        means (dict[str, Tensor]): Name of an attention module -> the values that are to take its place, (C,).
        run (callable): Runs the network once.

    Returns:
        tuple[dict[str, str], dict[str, str]]: For each of these modules its host's name, or else the reason it has none.
    """
    trace = _Trace(model, means)
    try:
        run()
    finally:
        trace.close()
    hosts, reasons = {}, {}
    for name in means:
        host = trace.found.get(name, 'it did not run')
        if name not in trace.found or isinstance(host, ValueError):
            reasons[name] = str(host)
        elif trace.runs[host] != len(trace.uses[host]) or not all(source.has_one_reader() for source in trace.uses[host]):
            reasons[name] = f'{host} feeds something else as well'
        else:
            hosts[name] = host
    return hosts, reasons


def fold_means(model: nn.Module, means: dict[str, torch.Tensor], hosts: dict[str, str]) -> nn.Module:
    """Replace attention modules by their means, and multiply those into their hosts as ASR is, in place.

    Args:
        model (nn.Module): A network without ASR.
        means (dict[str, Tensor]): Name of an attention module -> its mean values, (C,).
        hosts (dict[str, str]): Name of an attention module -> its host's, from :func:`find_hosts`.

    Returns:
        nn.Module: ``model``, with an ``nn.Identity`` in the place of each module.
    """
    for name, host in hosts.items():
        attach(model, lambda channels, name=name: Constant(means[name]), sites=[host])
        model.get_submodule(host).fold()  # and nothing else: branches of other libraries may be there to stay
        replace(model, name, nn.Identity())
    restore_classes(model)
    return model
