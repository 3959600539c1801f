"""Find the weights of a network in the content of a file, whatever code saved it."""

from typing import Any

import torch

#: Entries that may contain the weights; the first that does is read. A file with both has the weights that
#: were trained in ``model``, and their moving average in ``ema``.
CONTAINERS = (
    *('state_dict', 'model_state_dict', 'model', 'module', 'net'),
    *('ema', 'model_ema', 'state_dict_ema', 'ema_state_dict', 'params', 'params_ema'),
)
#: Present in the checkpoints of Lightning, whose network is the attribute ``model`` of a module.
_LIGHTNING = 'pytorch-lightning_version'
#: Counters that torch's ``AveragedModel`` and mmengine's moving averages add to the names of a network.
_COUNTERS = {'n_averaged', 'steps'}
_COMPILED = '_orig_mod'


def find_weights(content: Any, depth: int = 2) -> dict[str, torch.Tensor] | None:
    """Return the dict of weights in the content of a file, unchanged.

    Args:
        content (Any): The content, or an entry of it.
        depth (int): Number of containers that may be around the weights. Default: 2, such as ``ema`` and
            ``module``.

    Returns:
        dict[str, Tensor] | None: The weights; None if there are none.
    """
    if not isinstance(content, dict):
        return None
    if content and all(map(_is_weight, content, content.values())):
        return content
    entries = (content.get(name) for name in CONTAINERS if depth)
    return next((found for entry in entries if (found := find_weights(entry, depth - 1))), None)


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and name.isprintable() and isinstance(value, torch.Tensor)


def without_wrappers(weights: dict[str, torch.Tensor], content: dict) -> dict[str, torch.Tensor]:
    """Return weights under the names that the network itself gives them.

    Parallel training, moving averages, ``torch.compile`` and Lightning wrap a network, which adds a prefix to
    all names. ``model.`` is removed in Lightning's files only: other networks may have a part of that name.

    Args:
        weights (dict[str, Tensor]): Weights, from :func:`find_weights`.
        content (dict): The content of the file.
    """
    renamed = {
        '.'.join(part for part in name.split('.') if part != _COMPILED): tensor
        for name, tensor in weights.items()
    }
    weights = renamed if len(renamed) == len(weights) else weights  # two of one name would become one
    if _LIGHTNING in content:
        weights = _without_prefix(weights, 'model.')
    own = {name: tensor for name, tensor in weights.items() if name not in _COUNTERS}
    return _without_prefix(own, 'module.') if all(n.startswith('module.') for n in own) and own else weights


def _without_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Remove a prefix if all names have it."""
    if not all(name.startswith(prefix) for name in weights):
        return weights
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
