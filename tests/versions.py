"""What not every supported version of torch has."""

import pytest
import torch

#: Before, torch.compile breaks the graph at a host, whose forward pass makes a module.
FULL_GRAPH = torch.__version__ >= (2, 12)


def need_fused_steps() -> None:
    """Skip the test where no optimizer has fused steps."""
    if torch.__version__ < (2, 4):
        pytest.skip('optimizers have fused steps on a CPU since torch 2.4')
