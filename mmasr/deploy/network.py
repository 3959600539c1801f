"""The network that a checkpoint is of: its config, in the checkpoint as data or a file of the user's own, its weights, and the
bounds of what a stranger may have put there."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..core.computed import Computed
from ..core.fold import find_foldable
from ..core.host import Host
from ..core.merge import stays_in_files
from ..errors import InputError, one_line, some
from ..openmmlab.building import build_model, load_weights
from ..openmmlab.config import load_config
from .compare import BOUNDS
from .restraint import restrained
from .untrusted_config import imported, read_config

WAYS_ON = 'give the config as a file of your own with `config`'


@dataclasses.dataclass
class Network:
    """The network of a checkpoint.

    Attributes:
        source (Path): Where it comes from.
        meta (dict): What its checkpoint says of it.
        config (Config): Its config.
        model (nn.Module | None): The network with its weights, in float32.
        sizes (dict[str, int]): Number of elements of the weights in the checkpoint.
        dtypes (dict[str, torch.dtype]): Their types.
        trust_imports (bool): As of :func:`load_network`.
        left_out (dict[str, str] | None): What was left out of a stranger's config; None of a config of the user's own.
    """

    source: Path
    meta: dict
    config: Config
    model: nn.Module | None
    sizes: dict[str, int]
    dtypes: dict[str, torch.dtype]
    trust_imports: bool
    left_out: dict[str, str] | None

    def restrained(self) -> AbstractContextManager:
        """The bounds of a stranger's network, by its weights."""
        if self.left_out is None:
            return nullcontext()
        return restrained(self.sizes, imported(self.config), memory=get_device() == 'cpu')

    @property
    def coarsest(self) -> torch.dtype:
        """The coarsest type of its weights."""
        return max((dtype for dtype in self.dtypes.values() if dtype in BOUNDS), key=BOUNDS.get, default=torch.float32)

    def foldable(self) -> dict[str, nn.Module]:
        """What deploying it would fold, by name.

        Raises:
            InputError: If something in it can't be folded.
        """
        try:
            found = find_foldable(self.model)
        except ValueError as error:
            raise InputError(f'{self.source}: {error}') from None
        return {name: m for name, m in found.items() if isinstance(m, Host | Computed) or not stays_in_files(m)}


def load_network(
    source: Path, loaded: dict, config: str | Path | None, trust_imports: bool, calibrated: bool = False
) -> Network:
    """Build the network that a checkpoint is of, and load its weights.

    Args:
        source (Path): The checkpoint.
        loaded (dict): What :func:`mmasr.openmmlab.checkpoint.read_checkpoint` read from it.
        config (str | Path, optional): A config of the user's own; None for the one in the checkpoint, which is read as data.
        trust_imports (bool): Run any ``custom_imports`` of the config in the checkpoint, and allow what they register.
        calibrated (bool): Whether the data of the config are to be read. Default: False.

    Returns:
        Network: With finite weights.

    Raises:
        InputError: If the checkpoint, its config or what they make can't be used.
    """
    weights = loaded['state_dict']
    if odd := [name for name, t in weights.items() if t.is_complex() or (t.is_floating_point() and t.dtype not in BOUNDS)]:
        raise InputError(
            f'{source}: weights are {weights[odd[0]].dtype} in {some(odd)}; only float and integer types are known'
        )
    used, left_out = _read_config(source, loaded, config, trust_imports, calibrated)
    network = Network(
        source=source,
        meta=loaded['meta'],
        config=used,
        model=None,
        sizes={name: tensor.numel() for name, tensor in weights.items()},
        dtypes={name: tensor.dtype for name, tensor in weights.items()},
        trust_imports=trust_imports,
        left_out=left_out,
    )
    with network.restrained():
        network.model = build_model(used)
        load_weights(network.model, weights, source)
    if broken := [name for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise InputError(f'{source}: NaN or Inf in {some(broken)}; take an earlier checkpoint')
    return network


def _read_config(
    source: Path, loaded: dict, path: str | Path | None, trust_imports: bool, calibrated: bool
) -> tuple[Config, dict[str, str] | None]:
    """The config of a checkpoint, and what was left out of it if it came inside."""
    if path:
        return load_config(path), None
    text = loaded['meta'].get('cfg')
    if not isinstance(text, str):
        raise InputError(f'{source} has no config in it; give the one it was trained with with `config`')
    config, left_out = said_of(source, read_config, text, loaded['state_dict'], trust_imports, calibrated)
    return Config(config), left_out


def said_of(source: Path, check: Callable, *args) -> Any:
    """What a check of the embedded config returns; what it finds, said of the checkpoint.

    Args:
        source (Path): The checkpoint.
        check (callable): The check.
        *args: Its arguments.

    Raises:
        InputError: With what it finds, and the way on.
    """
    try:
        return check(*args)
    except InputError as error:
        raise InputError(f'{source}: the embedded config is not used: {error}; {WAYS_ON}') from None
    except Exception as error:  # a stranger's values can be of any type
        raise InputError(one_line(f"{source}: the embedded config can't be used; {WAYS_ON}", error)) from None
