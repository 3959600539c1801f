"""The one way to open a checkpoint: its content as data, and its network, safe to run."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..errors import InputError, as_input_error, shortened
from ..openmmlab.building import build_model, load_weights
from ..openmmlab.config import load_config, with_type_names
from .allowlist import PACKAGES
from .checkpoint import data_only, read_checkpoint
from .config_text import parse_config
from .embedded_config import MAIN_METRIC, imports_of, read_config
from .sandbox import SandboxError, sandbox

#: Types of weights that can be deployed.
WEIGHT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a network, and the limits under which it is built and run.

    Attributes:
        source (Path): The checkpoint.
        sizes (dict[str, int]): Number of elements of each weight in it.
        trusted (Sequence[str]): Modules whose classes are all allowed: its config imports them, and they are
            not OpenMMLab's.
        left_out (dict[str, str], optional): Parts of the embedded config that were left out -> why. None if
            the user gave the config as a file: then nothing is limited.
    """

    source: Path
    sizes: dict[str, int]
    trusted: Sequence[str]
    left_out: dict[str, str] | None

    @contextmanager
    def limits(self) -> Iterator[None]:
        """While active, limit what is built, run and loaded, unless the user vouches for the config.

        Raises:
            InputError: Inside, if the network exceeds a limit.
        """
        is_embedded = self.left_out is not None
        limited = (
            sandbox(self.sizes, self.trusted, limit_memory=get_device() == 'cpu')
            if is_embedded
            else nullcontext()
        )
        try:
            with data_only(), limited:
                yield
        except InputError as error:
            cause: BaseException | None = error  # code in between may have added where it happened
            while not isinstance(cause, SandboxError | None):
                cause = cause.__cause__
            if cause is None or str(error).startswith(f'{self.source}: '):
                raise
            raise InputError(f'{self.source}: {error}') from error

    def deployed(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a deployed config without what was only kept to tell the main metric."""
        if self.left_out is None:
            return config
        return {name: value for name, value in config.items() if name != MAIN_METRIC}

    def rebuild(self, weights_file: Path, config_file: Path, config: dict[str, Any]) -> 'Network':
        """Build the network of a deployed pair of files.

        Args:
            weights_file (Path): The checkpoint.
            config_file (Path): Its config.
            config (dict): The config that was written there.

        Returns:
            Network: The network.

        Raises:
            InputError: If the config does not read back as it was written, or the files do not fit together.
        """
        content = read_checkpoint(weights_file, weights_only=True)
        read_back = parse_config(config_file.read_text(encoding='utf-8'))
        if repr(read_back) != repr(config):  # repr, because NaN is not equal to itself
            raise InputError(f'{self.source}: the deployed config does not read back as it was written')
        with self.limits():
            model = build_model(Config(read_back))
            load_weights(model, content['state_dict'], weights_file.name)
        return Network(model, Config(read_back), content['meta'], content['state_dict'], self)


@dataclasses.dataclass
class Network:
    """The network of a checkpoint.

    Attributes:
        model (nn.Module): The network with its weights, in float32, on the CPU.
        config (Config): Its config.
        meta (dict): The checkpoint's ``meta``.
        weights (dict[str, Tensor]): The weights in the types of the checkpoint.
        origin (Origin): Its limits, in which it must run.
    """

    model: nn.Module
    config: Config
    meta: dict
    weights: dict[str, torch.Tensor]
    origin: Origin


@dataclasses.dataclass
class Checkpoint:
    """Content of a checkpoint, as data.

    Attributes:
        source (Path): The file.
        content (dict): ``state_dict``, ``meta`` and what else mmengine's runner saves; see
            :func:`mmasr.untrusted.checkpoint.read_checkpoint`.
    """

    source: Path
    content: dict

    def build(self, config: Config) -> nn.Module:
        """Build the network of a config that was made from the weights, within the limits that these set.

        Raises:
            InputError: If it does not build, or exceeds a limit.
        """
        with self._origin(config, left_out={}).limits():
            return build_model(config)

    def network(
        self, config: str | Path | Config | None = None, trust_imports: bool = False, calibrates: bool = False
    ) -> Network:
        """Build the network and load its weights.

        Args:
            config (str | Path | Config, optional): A config that the user vouches for, such as a file, which
                is executed. Default: the config inside the checkpoint, parsed as data and checked.
            trust_imports (bool): Import, and so run, all modules that the embedded config asks for, and allow
                the classes that they register. Default: False.
            calibrates (bool): Whether the data of the embedded config is to be read. Default: False.

        Returns:
            Network: The network. All its weights are finite.

        Raises:
            InputError: If the weights, the config or both together cannot be used.
        """
        weights, meta = self.content['state_dict'], self.content['meta']
        self._check_types(weights)
        left_out = None
        if config is None:
            config, left_out = self._read_config(weights, meta, trust_imports, calibrates)
        else:
            config = with_type_names(config) if isinstance(config, Config) else load_config(config)
        origin = self._origin(config, left_out)
        with origin.limits():
            model = build_model(config)
            load_weights(model, weights, self.source)
        broken = [name for name, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
        if broken:
            raise InputError(f'{self.source}: NaN or Inf in {shortened(broken)}; use an earlier checkpoint')
        return Network(model, config, meta, _as_loaded(weights, model), origin)

    def _origin(self, config: Config, left_out: dict[str, str] | None) -> Origin:
        sizes = {name: tensor.numel() for name, tensor in self.content['state_dict'].items()}
        imports = () if left_out is None else imports_of(config)
        trusted = [name for name in imports if name.split('.')[0] not in PACKAGES]
        return Origin(self.source, sizes, trusted, left_out)

    def _check_types(self, weights: dict[str, torch.Tensor]) -> None:
        unknown = [
            name
            for name, t in weights.items()
            if t.is_complex() or (t.is_floating_point() and t.dtype not in WEIGHT_TYPES)
        ]
        if unknown:
            raise InputError(
                f'{self.source}: weights are {weights[unknown[0]].dtype} in {shortened(unknown)}; only float '
                'and integer types are supported'
            )

    def _read_config(
        self, weights: dict[str, torch.Tensor], meta: dict, trust_imports: bool, calibrates: bool
    ) -> tuple[Config, dict[str, str]]:
        """Read the embedded config; return it and what was left out."""
        text = meta.get('cfg')
        if not isinstance(text, str):
            raise InputError(
                f'{self.source} has no config in it; pass the one it was trained with as `config`'
            )
        try:
            with as_input_error("it can't be read"):
                config, left_out = read_config(text, weights, trust_imports, calibrates)
        except InputError as error:
            raise InputError(
                f'{self.source}: the embedded config is not used: {error}; pass the config as a file with '
                '`config`'
            ) from error
        return Config(config), left_out


def _as_loaded(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights as a model has loaded them, in their own types; it may convert old ones."""
    loaded = model.state_dict()
    return {
        name: tensor
        if torch.equal(tensor.to(loaded[name].dtype), loaded[name])
        else loaded[name].to(tensor.dtype)
        for name, tensor in weights.items()
    }


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without running anything in it.

    Args:
        path (str | Path): A checkpoint of mmengine's runner, or bare weights.

    Returns:
        Checkpoint: Its content. :meth:`Checkpoint.network` builds the network, safe to run.

    Raises:
        InputError: If it cannot be read, or contains anything but weights, numbers and text.
    """
    return Checkpoint(Path(path), read_checkpoint(path, weights_only=True))
