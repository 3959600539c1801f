"""Features that only some of the supported versions of torch have."""

import pytest
import torch

#: Whether torch.compile captures a host in one graph. Earlier versions break the graph, because its forward
#: creates a module.
FULL_GRAPH = torch.__version__ >= (2, 12)


def need_on_a_cpu(dtype: torch.dtype) -> None:
    """Skip the test if convolutions or the identity matrix lack a type on a CPU, as in torch 2.1."""
    try:
        torch.nn.functional.conv2d(*[torch.eye(1, dtype=dtype)[None, None]] * 2)
    except RuntimeError as error:
        pytest.skip(str(error))


def need_fused_steps() -> None:
    """Skip the test if optimizers have no fused steps on a CPU."""
    if torch.__version__ < (2, 4):
        pytest.skip('fused optimizer steps on a CPU need torch 2.4')
