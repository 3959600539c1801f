"""ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks, Ding et al., ICCV 2019,
https://arxiv.org/abs/1908.03930. Needs torch only."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.weak import WeakTensorKeyDictionary

#: What mmcv's ConvModule asks a convolution for.
_LIKE_A_CONVOLUTION = (
    'in_channels',
    'out_channels',
    'kernel_size',
    'stride',
    'padding',
    'dilation',
    'transposed',
    'output_padding',
    'groups',
)


class ACNet(nn.Module):
    """The sum of a 3 × 3, a 3 × 1 and a 1 × 3 convolution, each with a BatchNorm; one 3 × 3 convolution once it is trained.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        stride (int): Stride. Default: 1.
        padding (int): Padding, at least the dilation, so that the narrow kernels see what the wide one does. Default: 1.
        dilation (int): Dilation. Default: 1.
        groups (int): Groups. Default: 1.

    Raises:
        ValueError: If the padding is less than the dilation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        if padding < dilation:
            raise ValueError(f'ACNet needs a padding of at least its dilation, {dilation}, not {padding}')
        narrow = padding - dilation

        def branch(kernel: tuple[int, int], padding: tuple[int, int]) -> nn.Sequential:
            options = {'stride': stride, 'dilation': dilation, 'groups': groups, 'bias': False}
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel, padding=padding, **options), nn.BatchNorm2d(out_channels)
            )

        self.square = branch((3, 3), (padding, padding))
        self.vertical = branch((3, 1), (padding, narrow))
        self.horizontal = branch((1, 3), (narrow, padding))
        for name in _LIKE_A_CONVOLUTION:
            setattr(self, name, getattr(self.square[0], name))
        self.init_weights()

    def init_weights(self) -> None:
        """Let the BatchNorms start at γ = 1/3 each, as in the code of ACNet's authors for CIFAR. OpenMMLab's ``init_weights``
        comes by here after it has initialised what surrounds this."""
        for bn in (self.square[1], self.vertical[1], self.horizontal[1]):
            nn.init.constant_(bn.weight, 1 / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self.square(x) + self.vertical(x) + self.horizontal(x)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The one convolution, with bias, that computes the same in eval mode (section 3.3 of the paper)."""
        weight, bias = 0, 0
        for (conv, bn), sides in zip(
            (self.square, self.vertical, self.horizontal), ((0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1)), strict=True
        ):
            statistics = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            branch_weight, branch_bias = fuse_conv_bn_weights(conv.weight, None, *statistics)
            weight, bias = weight + pad(branch_weight, sides), bias + branch_bias
        options = {name: getattr(self, name) for name in ('stride', 'padding', 'dilation', 'groups')}
        conv = nn.Conv2d(self.in_channels, self.out_channels, 3, **options).to(weight)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv


def build_acnet(in_channels: int, out_channels: int, kernel_size: int | tuple, bias: bool = True, **options) -> nn.Module:
    """An ACNet in the place of a 3 × 3 convolution, and an ordinary convolution for any other kernel: what
    ``conv_cfg=dict(type='ACNet')`` builds in a network of mmcv, which asks for all its convolutions that way.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        kernel_size (int | tuple): Kernel size.
        bias (bool): Whether an ordinary convolution has a bias. Default: True.
        **options: ``stride``, ``padding``, ``dilation`` and ``groups``.
    """
    if kernel_size in (3, (3, 3)):
        return ACNet(in_channels, out_channels, **options)
    return nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias, **options)


@torch.no_grad()
def merge_acnets(model: nn.Module, run: Callable[[], object]) -> nn.Module:
    """Merge every ACNet of a network into one convolution without bias, in place; the bias goes into the BatchNorm after it,
    as the networks of mmcv have one there.

    Args:
        model (nn.Module): A network in eval mode; one without ACNets is left as it is.
        run (callable): Runs it once, which shows what comes after each.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If no BatchNorm comes straight after an ACNet. The model is then as it was.
    """
    acnets = {module: name for name, module in model.named_modules() if isinstance(module, ACNet)}
    if not acnets:
        return model
    outputs, followers = WeakTensorKeyDictionary(), {}

    def after(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if isinstance(module, ACNet):
            outputs[output] = module
        elif args[0] in outputs:
            followers[outputs[args[0]]] = module

    hooks = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, ACNet | _BatchNorm)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for acnet, name in acnets.items():
        if acnet not in followers:
            raise ValueError(f"{name} can't be merged into a convolution without bias: no BatchNorm comes after it")
    for acnet, name in acnets.items():
        conv = acnet.merged()
        followers[acnet].running_mean -= conv.bias
        conv.bias = None
        model.set_submodule(name, conv)
    return model
