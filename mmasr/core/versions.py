"""What older versions of torch lack, from 2.1 on, and what takes its place there. Needs torch only."""

from functools import partial

import torch

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
    unfused_attention = partial(torch.backends.cuda.sdp_kernel, enable_flash=False, enable_mem_efficient=False)

__all__ = ['MINDS_HOOKS', 'SEES_THE_PASS', 'GradScaler', 'is_compiling', 'unfused_attention']

#: Whether torch tells which hooks of autograd on saved tensors a forward pass runs under.
SEES_THE_PASS = torch.__version__ >= (2, 8)

#: Whether ``nn.TransformerEncoderLayer`` calls its layers where one has a hook; before, its fused path reads their parameters.
MINDS_HOOKS = torch.__version__ >= (2, 5)
