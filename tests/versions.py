"""What not every supported version of torch has."""

import pytest
import torch

TORCH = tuple(int(number) for number in torch.__version__.split('.')[:2])

#: Before, torch.compile breaks the graph at a host, whose forward pass makes a module.
FULL_GRAPH = TORCH >= (2, 12)


def need_fused_steps() -> None:
    """Skip the test where no optimizer has fused steps."""
    if TORCH < (2, 4):
        pytest.skip('optimizers have fused steps on a CPU since torch 2.4')
