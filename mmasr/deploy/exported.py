"""The part of a network that is exported, and networks that have it computed by ONNX Runtime."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.class_lookup import lookup_by_class
from ..core.differences import tensors
from ..errors import InputError, as_input_error
from .compare import IMAGES, data_samples, input_channels, is_detector


def onnx_runtime() -> Any:
    """Return the package onnxruntime, which only exported files need.

    Raises:
        InputError: If onnx or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401  torch's exporter needs it
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f'exported files need onnx and onnxruntime: pip install onnx onnxruntime ({error})'
        ) from error
    return onnxruntime


class Graph:
    """Exported network that ONNX Runtime computes on the CPU.

    Args:
        file (Path): A file that :func:`mmasr.deploy.export.export` wrote.

    Raises:
        InputError: If the file has other inputs.
        Exception: Any, of ONNX Runtime, if it cannot compute the file.

    Attributes:
        names (list[str]): Names of its outputs.
        size (list[int], optional): Height and width of its images, if they are fixed.
    """

    def __init__(self, file: Path) -> None:
        runtime = onnx_runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # the exception has the same text
        self._session = runtime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
        shapes = {image.name: image.shape for image in self._session.get_inputs()}
        if [*shapes] != ['input'] or len(shapes['input']) != 4:
            raise InputError(f'{file} was not exported by mmasr: its inputs are {shapes}')
        number, _, *size = shapes['input']
        self._number = number if isinstance(number, int) else None
        self.size = size if all(isinstance(side, int) for side in size) else None
        self.names = [output.name for output in self._session.get_outputs()]

    def batches(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split images (N, C, H, W) into batches that the graph takes."""
        return images.split(self._number or len(images))

    def run(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute the outputs.

        Args:
            images (Tensor): (N, C, H, W), normalized.

        Returns:
            list[Tensor]: The outputs, in the order of :attr:`names`, on the device of the images.
        """
        runs = [self._session.run(None, {'input': part.cpu().numpy()}) for part in self.batches(images)]
        outputs = [[torch.from_numpy(output) for output in outputs] for outputs in runs]
        found = outputs[0] if len(outputs) == 1 else map(torch.cat, zip(*outputs, strict=True))
        return [tensor.to(images.device) for tensor in found]


def named_outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the exported part of a network.

    Args:
        model (nn.Module): A model with OpenMMLab's ``forward(inputs, data_samples, mode='tensor')``.
        images (Tensor): (N, C, H, W), normalized.

    Returns:
        dict[str, Tensor]: Outputs by name.
    """
    return _named(model, _outputs(model, images))


def _named(model: nn.Module, outputs: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of :func:`_outputs` by name, in order."""
    if not is_detector(model):
        found = {'logits' if getattr(model, 'with_head', True) else 'features': outputs}
    elif not has_two_stages(model):
        found = _by_name(model, 'bbox_head', outputs)
    else:
        features, *proposals = outputs
        found = {'features': features}
        for output in proposals:
            named = _by_name(model, 'rpn_head', output)
            found.update({f'rpn_{name}': value for name, value in named.items()})
    return {name.replace('.', '_'): tensor for name, tensor in tensors('', found)}


def _outputs(model: nn.Module, images: torch.Tensor) -> Any:
    """Return the outputs of the exported part as the network returns them.

    Those of a two-stage detector are the features of its neck, and the outputs of its RPN.
    """
    if not is_detector(model):
        return model(images, mode='tensor')
    if not has_two_stages(model):
        return model(images, data_samples(images), mode='tensor')
    features = model.extract_feat(images)
    return (features, model.rpn_head(features)) if _has_rpn(model) else (features,)


def has_two_stages(model: nn.Module) -> bool:
    """Return whether a model is a two-stage detector of MMDetection."""
    return lookup_by_class({'mmdet.TwoStageDetector': True}, model) is not None


def _has_rpn(model: nn.Module) -> bool:
    return model.with_rpn and lookup_by_class({'mmdet.BaseDenseHead': True}, model.rpn_head) is not None


def _by_name(model: nn.Module, head: str, outputs: Any) -> dict[str, Any]:
    """Name the outputs of a detector's head after the parameters of its loss, in the singular."""
    loss = getattr(getattr(model, head, None), 'loss_by_feat', None)
    names = list(inspect.signature(loss).parameters) if loss else []
    names = names[: names.index('batch_gt_instances')] if 'batch_gt_instances' in names else []
    if not isinstance(outputs, tuple) or len(names) != len(outputs):
        return {'output': outputs}
    return {
        name.removesuffix('es' if name.endswith('sses') else 's'): value
        for name, value in zip(names, outputs, strict=True)
    }


@contextlib.contextmanager
def computed_by(model: nn.Module, graph: Graph) -> Iterator[None]:
    """Let ONNX Runtime compute the exported part of a network; the network still computes the rest.

    The rest is what follows in ``mode='predict'``: the decoding of boxes, a second stage, the resizing of
    logits. The network's own weights of the exported part are not used.

    Args:
        model (nn.Module): A classifier, segmentor or detector of OpenMMLab in eval mode.
        graph (Graph): The exported part of a network with the same structure.

    Raises:
        InputError: If the graph has other outputs than the network; or if the network does not predict from
            these outputs alone.
    """
    latest = None

    def run(images: torch.Tensor, *_: Any, **__: Any) -> Any:
        nonlocal latest
        latest = _restored(outputs, iter(graph.run(images)))
        return latest

    size = graph.size or _size(model)
    images = torch.randn(1, input_channels(model), *size, generator=torch.Generator().manual_seed(0))
    images = images.to(next(model.parameters()).device)
    with torch.no_grad(), as_input_error('the network does not run'):
        outputs = _outputs(model, images)
        names = [*_named(model, outputs)]
        if names != graph.names:
            raise InputError(f'the graph has the outputs {graph.names}; those of the network are {names}')
        if has_two_stages(model):
            parts = [(model, 'extract_feat', lambda images: run(images)[0])]
            parts += [(model.rpn_head, 'forward', lambda _: latest[1])] if _has_rpn(model) else []
        else:
            head, takes_images = _find_head(model, images)
            parts = [(head, 'forward', lambda *_, **__: latest), (model, 'extract_feat', run)]
            parts = [(head, 'forward', run)] if takes_images else parts
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(_replaced(*part))
        yield


def _restored(structure: Any, found: Iterator[torch.Tensor]) -> Any:
    """Return nested containers with other tensors in place of theirs."""
    if isinstance(structure, torch.Tensor):
        return next(found)
    if isinstance(structure, dict):
        return {key: _restored(value, found) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_restored(value, found) for value in structure)
    return structure


@contextlib.contextmanager
def _replaced(module: nn.Module, name: str, function: Callable) -> Iterator[None]:
    """Replace a method of one module."""
    own = vars(module).get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


def _find_head(model: nn.Module, images: torch.Tensor) -> tuple[nn.Module, bool]:
    """Find the module whose outputs the network returns, and from which it predicts.

    Returns:
        tuple[nn.Module, bool]: The module, and whether it takes the images, not features.
    """
    samples = data_samples(images) if is_detector(model) else None
    with _recorded(model) as calls:
        outputs = model(images, samples, mode='tensor')
    heads = [(module, arguments) for module, arguments, found in calls if found is outputs]
    if not heads:
        raise InputError(f'{type(model).__name__} does not return the outputs of a head')
    head, arguments = heads[0]
    with _recorded(model) as calls:
        model(images, samples, mode='predict')
    predicted = [found for module, _, found in calls if module is head]
    if len(predicted) != 1 or not _equal(outputs, predicted[0]):
        raise InputError(f'{type(model).__name__} does not predict from the exported outputs alone')
    return head, bool(arguments) and arguments[0] is images


def _size(model: nn.Module) -> tuple[int, int]:
    """Return height and width of images that a network takes as a whole, not in crops."""
    settings = getattr(model, 'test_cfg', None) or {}
    return tuple(settings['crop_size']) if settings.get('mode') == 'slide' else (IMAGES[0], IMAGES[0])


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[nn.Module, tuple, Any]]]:
    """Record module, inputs and output of the calls of a network's parts, also of those of ``forward``."""
    calls: list[tuple[nn.Module, tuple, Any]] = []

    def recording(module: nn.Module) -> Callable:
        forward = module.forward

        def run(*args: Any, **options: Any) -> Any:
            output = forward(*args, **options)
            calls.append((module, args, output))
            return output

        return run

    with contextlib.ExitStack() as stack:
        for child in model.children():
            for module in child if isinstance(child, nn.ModuleList) else [child]:
                stack.enter_context(_replaced(module, 'forward', recording(module)))
        yield calls


def _equal(expected: Any, actual: Any) -> bool:
    pairs: Sequence = [list(tensors('', outputs)) for outputs in (expected, actual)]
    return len(pairs[0]) == len(pairs[1]) and all(
        name == other and torch.equal(tensor, found)
        for (name, tensor), (other, found) in zip(*pairs, strict=True)
    )
