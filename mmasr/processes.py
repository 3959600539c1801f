"""Support for the processes that torchrun starts. Needs torch only."""

import os

import torch


def join_processes(device: str | torch.device) -> tuple[int, torch.device]:
    """Join the process group if torchrun started this process. With CUDA, each process gets its own GPU.

    Args:
        device (str | torch.device): The requested device.

    Returns:
        tuple[int, torch.device]: Rank of this process (0 without torchrun) and its device. For CUDA under
        torchrun, this is the GPU with the number ``LOCAL_RANK``.
    """
    device = torch.device(device)
    if 'RANK' not in os.environ:
        return 0, device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return torch.distributed.get_rank(), device
