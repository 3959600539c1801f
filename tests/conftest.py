import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and running statistic a value that a fold could get wrong: none is 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith(('running_mean', 'running_var')):
                buffer.uniform_(0.5, 1.5)
    return module


@pytest.fixture
def process_group():
    """A process group of this process alone, which mmcv's SyncBatchNorm asks for."""
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
