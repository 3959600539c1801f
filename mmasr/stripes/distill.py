"""Compare a network with its teacher without labels, and train constants to agree with it. Torch only."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div

from ..core.differences import tensors
from ..errors import InputError
from .trace import Trace

#: A function such as ``rich.progress.track``: ``(items, description) -> items``.
Track = Callable[[Iterable, str], Iterable]


@dataclasses.dataclass
class Runs:
    """A network and unlabeled batches for it.

    Attributes:
        model (nn.Module): The network.
        forward (callable): Runs the network on a batch: ``(model, batch) -> outputs``.
        maps (Collection[str]): Names of modules whose feature maps are compared besides the outputs.
    """

    model: nn.Module
    forward: Callable[[nn.Module, Any], Any]
    maps: Collection[str] = ()

    def outputs(self, batch: object) -> tuple[dict[str, torch.Tensor], Any]:
        """Run the network.

        Args:
            batch (Any): A batch.

        Returns:
            tuple[dict[str, Tensor], Any]: The feature maps and outputs that are floating-point tensors, by
            name, at least in float32; and the outputs as they are.

        Raises:
            InputError: If there are none, or if they have NaN or infinite values.
        """
        found: dict[str, torch.Tensor] = {}
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: found.update(tensors(name, output))
            )
            for name in self.maps
        ]
        try:
            result = self.forward(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        found.update((name or 'output', tensor) for name, tensor in tensors('', result))
        found = {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in found.items()
            if tensor.is_floating_point()
        }
        if not found:
            raise InputError(
                f'the network returns {type(result).__name__}, without tensors to compare; pass a `forward` '
                'that returns the raw outputs'
            )
        for name, tensor in found.items():
            if not tensor.isfinite().all():
                raise InputError(f'{name} of the network has NaN or infinite values; check the batches')
        return found, result


def is_decision(outputs: dict[str, torch.Tensor]) -> bool:
    """Return whether outputs are the logits or probabilities of one decision for each image.

    Args:
        outputs (dict[str, Tensor]): Outputs, from :meth:`Runs.outputs`.
    """
    return len(outputs) == 1 and all(t.dim() == 2 and t.shape[1] > 1 for t in outputs.values())


def loss(teacher: dict[str, torch.Tensor], student: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return how far outputs are from the teacher's.

    Args:
        teacher (dict[str, Tensor]): Outputs of the teacher.
        student (dict[str, Tensor]): Outputs of the student, of the same shapes.

    Returns:
        Tensor: The KL divergence of the classes for one decision per image. Otherwise the mean squared
        difference of each tensor, relative to the teacher's variance, averaged over the tensors.
    """
    if is_decision(teacher):
        (expected,), (found,) = teacher.values(), student.values()
        return kl_div(_log(found), _log(expected), log_target=True, reduction='batchmean')
    parts = [
        (student[name] - expected).square().mean() / expected.var(correction=0).clamp(min=1e-12)
        for name, expected in teacher.items()
    ]
    return torch.stack(parts).mean()


def _log(outputs: torch.Tensor) -> torch.Tensor:
    """Return logarithms of probabilities, from these or from logits."""
    sums = outputs.detach().sum(1)
    if (outputs >= 0).all() and (sums - 1).abs().max() < 1e-3:
        return outputs.clamp(min=1e-12).log()
    return outputs.log_softmax(1)


def change(teacher: dict[str, torch.Tensor], student: dict[str, torch.Tensor]) -> float:
    """Return the share of decisions that changed, or the :func:`loss` of other outputs.

    Args:
        teacher (dict[str, Tensor]): Outputs of the teacher.
        student (dict[str, Tensor]): Outputs of the student.
    """
    if is_decision(teacher):
        (expected,), (found,) = teacher.values(), student.values()
        return (expected.argmax(1) != found.argmax(1)).float().mean().item()
    return loss(teacher, student).item()


def last_shared_map(runs: Runs, batch: object) -> list[str]:
    """Return the name of the last module whose feature map all outputs depend on; empty if there is none.

    Args:
        runs (Runs): The network.
        batch (Any): A batch.
    """
    trace = Trace(runs.model)
    with torch.no_grad(), trace:
        result = runs.forward(runs.model, batch)
        with torch._C.DisableTorchFunction():
            outputs = [trace.value(tensor) for _, tensor in tensors('', result) if tensor.is_floating_point()]
    needed: dict[int, set[int]] = {value: {number} for number, value in enumerate(outputs)}
    for call in reversed([call for call in trace.calls if call.module is None]):
        reached = set().union(*(needed.get(value, ()) for value in call.outputs))
        for value in call.inputs:
            needed.setdefault(value, set()).update(reached)
    shared = [
        call.name
        for call in trace.calls
        if call.module is not None
        and call.outer is not None
        and len(call.outputs) == 1
        and len(trace.shapes[call.outputs[0]]) > 2
        and call.outputs[0] not in outputs
        and needed.get(call.outputs[0]) == set(range(len(outputs)))
    ]
    return shared[-1:]


@torch.no_grad()
def distill(
    teacher: Callable[[object], dict[str, torch.Tensor]],
    student: Callable[[object], dict[str, torch.Tensor]],
    parameters: Sequence[torch.Tensor],
    rate: float,
    training: Sequence,
    held_out: Sequence,
    epochs: int,
    track: Track,
) -> None:
    """Train parameters of a student in place so that its outputs agree with the teacher's.

    Adam trains them in one cycle. In the end they have the values of the epoch with the smallest loss on
    held-out batches, the start included; after an exception, those of the start.

    Args:
        teacher (callable): Returns the teacher's outputs for a batch.
        student (callable): Returns the student's.
        parameters (Sequence[Tensor]): Tensors to train, which the student's outputs depend on.
        rate (float): Largest learning rate.
        training (Sequence): Batches to train on.
        held_out (Sequence): Batches to choose the epoch on.
        epochs (int): Number of epochs.
        track (callable): Progress bar like ``rich.progress.track``.
    """

    def held_out_loss() -> float:
        losses = [loss(teacher(batch), student(batch)).item() for batch in held_out]
        return sum(losses) / len(losses)

    best, values = held_out_loss(), [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=max(1, epochs * len(training))
    )
    try:
        for epoch in range(epochs):
            for batch in track(training, f'distilling, epoch {epoch + 1} of {epochs}, loss {best:.4g}'):
                expected = teacher(batch)
                with torch.enable_grad():
                    loss(expected, student(batch)).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            if (now := held_out_loss()) < best:
                best, values = now, [parameter.detach().clone() for parameter in parameters]
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.grad = None
            parameter.data.copy_(value)


@contextmanager
def only_training(model: nn.Module, trained: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """While active, only some parameters of a network have gradients.

    Args:
        model (nn.Module): The network.
        trained (Collection[nn.Parameter]): These parameters. Default: none.
    """
    others = [p for p in model.parameters() if p.requires_grad and not any(p is one for one in trained)]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
