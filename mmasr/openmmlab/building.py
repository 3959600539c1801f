"""Functions that build runners and models from configs, and load weights."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ..errors import InputError, as_input_error, shortened, with_source
from .config import default_scope, without_downloads
from .data_sources import EMPTY, loading_data, name_images


def build_runner(config: Config) -> Runner:
    """Build the runner of a config."""
    with as_input_error(f'{config.filename} does not build'):
        return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def build_model(config: Config) -> nn.Module:
    """Build the model of a config on the CPU, without downloads.

    SyncBatchNorm layers become BatchNorm layers, which compute the same in eval mode.

    Raises:
        InputError: If the config has no model, or the model does not build.
    """
    if not isinstance(config.get('model'), dict):
        raise InputError('the config has no model; it must be a dict with a type')
    with as_input_error("the config's model does not build"):
        init_default_scope(default_scope(config))
        model = without_downloads(config.model.to_dict())
        if 'data_preprocessor' in config:  # in MMPretrain's configs it is not part of the model
            model.setdefault('data_preprocessor', config.data_preprocessor)
        return revert_sync_batchnorm(MODELS.build(ConfigDict(model)))


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights that must match the model exactly. They are converted to the model's dtype.

    Args:
        model (nn.Module): The model, changed in place.
        weights (dict[str, Tensor]): Its state dict.
        source (str | Path): File of the weights, for errors.

    Raises:
        InputError: If weights are missing, have another shape, or do not exist in the model.
    """
    own = model.state_dict()
    problems = {
        'missing': [name for name in own if name not in weights],
        'not in the model': [name for name in weights if name not in own],
        'of another shape': [
            name for name, tensor in own.items() if name in weights and tensor.shape != weights[name].shape
        ],
    }
    if any(problems.values()):
        found = '; '.join(f'{problem}: {shortened(names)}' for problem, names in problems.items() if names)
        raise InputError(f"{source}: config and weights don't match: {found}")
    # Some networks have hooks that require more than their own state dict contains.
    with as_input_error(f"{source}: the weights don't load"):
        model.load_state_dict(weights)


@contextlib.contextmanager
def failures_logged(runner: Runner) -> Iterator[None]:
    """While active, write the traceback of an exception to the runner's log file.

    The console shows one line, and a training that took days cannot be repeated to see more.
    """
    try:
        yield
    except Exception:
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.stream.write(traceback.format_exc())
                handler.flush()
        raise


def build_loops(runner: Runner, *loops: str) -> None:
    """Build the data of a runner's loops, whose errors about an image then name its file.

    Args:
        runner (Runner): A runner that has not run yet.
        *loops (str): ``train``, ``val`` or ``test``.

    Raises:
        InputError: If the data does not load, or is empty.
    """
    for loop in loops:
        config = getattr(runner, f'_{loop}_loop')
        if config is None:
            continue
        with with_source(f'{loop}_dataloader'), loading_data('the data does not load'):
            built = getattr(runner, f'build_{loop}_loop')(config)
        if not len(built.dataloader.dataset):
            raise InputError(f'{loop}_dataloader: {EMPTY}')
        name_images(built.dataloader.dataset)
        setattr(runner, f'_{loop}_loop', built)
