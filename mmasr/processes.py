"""Working in the processes that torchrun starts. Needs torch only."""

import os

import torch


def join_processes(device: str | torch.device) -> tuple[int, torch.device]:
    """Join the process group if torchrun started this process, on a GPU of its own.

    Args:
        device (str | torch.device): What to work on.

    Returns:
        tuple[int, torch.device]: The rank of this process, 0 if there is no other, and the device, which with ``'cuda'`` is the
            GPU that is this process's share.
    """
    device = torch.device(device)
    if 'RANK' not in os.environ:
        return 0, device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return torch.distributed.get_rank(), device
