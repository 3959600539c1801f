"""Building what a config asks for: runners and models, and loading their weights."""

from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ..errors import InputError, one_line, some
from .config import without_downloads


def build_runner(config: Config) -> Runner:
    """Build the runner that a config asks for."""
    try:
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    except InputError:
        raise
    except Exception as error:  # of whatever the config asks for
        raise InputError(one_line(f'{config.filename} does not build', error)) from error


def build_model(config: Config) -> nn.Module:
    """Build a config's model on the CPU, without downloads, its SyncBatchNorms as BatchNorms, which are the same in eval mode.

    Raises:
        InputError: If it does not build.
    """
    try:
        init_default_scope(config.get('default_scope', 'mmengine'))
        model = without_downloads(config.model.to_dict())
        if 'data_preprocessor' in config:  # where MMPretrain's configs have it
            model.setdefault('data_preprocessor', config.data_preprocessor)
        return revert_sync_batchnorm(MODELS.build(ConfigDict(model)))
    except Exception as error:  # a config can be wrong in any way
        raise InputError(one_line("the config's model does not build", error)) from error


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights that must fit; they are converted to the model's type.

    Raises:
        InputError: If weights are missing, too many, or of another shape; ``source`` is where they come from.
    """
    own = model.state_dict()
    problems = {
        'missing': [name for name in own if name not in weights],
        'not in the model': [name for name in weights if name not in own],
        'of another shape': [name for name, tensor in own.items() if name in weights and tensor.shape != weights[name].shape],
    }
    if any(problems.values()):
        found = '; '.join(f'{problem}: {some(names)}' for problem, names in problems.items() if names)
        raise InputError(f"{source}: config and weights don't fit: {found}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # some networks have hooks that want more than they save
        raise InputError(one_line(f"{source}: the weights don't load", error)) from None
