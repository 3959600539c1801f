"""Differences between the supported versions of torch, from 2.1. Needs torch only."""

import contextlib
from functools import partial

import torch
from torch._subclasses import FakeTensor

try:
    from torch.compiler import is_compiling
except ImportError:  # before 2.3
    from torch._utils import is_compiling

try:
    from torch.amp import GradScaler
except ImportError:  # before 2.3
    from torch.cuda.amp import GradScaler

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    unfused_attention = partial(sdpa_kernel, SDPBackend.MATH)
except ImportError:  # before 2.3
    unfused_attention = partial(
        torch.backends.cuda.sdp_kernel, enable_flash=False, enable_mem_efficient=False
    )

# Both return None outside the transforms of torch.func.
try:
    from torch._C._functorch import maybe_current_level as functorch_level
except ImportError:  # in 2.1
    from torch._C._functorch import peek_interpreter_stack as functorch_level

__all__ = [
    'CAN_BATCH',
    'FUSED_PATH_RESPECTS_HOOKS',
    'GradScaler',
    'functorch_level',
    'has_values',
    'is_compiling',
    'unfused_attention',
    'without_autocast',
]

#: Whether torch reports which saved-tensor hooks of autograd are active, which :mod:`mmasr.core.batched`
#: needs.
CAN_BATCH = torch.__version__ >= (2, 8)

#: Whether ``nn.TransformerEncoderLayer`` calls its layers if one has a hook. Before, its fused path always
#: reads their parameters.
FUSED_PATH_RESPECTS_HOOKS = torch.__version__ >= (2, 5)


def has_values(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has values to read: it is neither on the meta device nor a FakeTensor."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context that switches autocast off on a device. The meta device has none to switch off."""
    return contextlib.nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)
