"""Style transfer under batch noise: Fig. 5 of ASR's paper (arXiv 2304.06345).

The paper shows pictures only and gives neither network nor recipe. The network here is the one of Johnson et
al. (arXiv 1603.08155) with nearest-neighbor upsampling and convolutions instead of transposed convolutions.
Needs torch, Pillow, and timm or torchvision for the features.
"""

import dataclasses
import hashlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.attach import attach
from ..core.fold import fold
from ..errors import InputError, as_input_error
from ..files import temporary_files
from ..plots import TEXT, panels
from .noise import NoisyBN, add_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A function such as ``rich.progress.track``: ``(items, description) -> items``.
Track = Callable[[Iterable, str], Iterable]
#: Variants of the network -> their names in tables and figures.
NETWORKS = {
    'in': 'instance norm',
    'bn': 'BatchNorm',
    'noise': 'BatchNorm + noise',
    'noise_half': 'BatchNorm + noise, control',
    'noise_asr_se': 'BatchNorm + noise + ASR(SE)',
}
#: Feature extractors -> mean and standard deviation of their input.
FEATURES = {
    'efficientnet_lite0': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'vgg16': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_VGG_LAYERS = ('3', '8', '15', '22')  # the last ReLU of each of the first four stages
_CONTENT = 2  # the content loss uses the third of the four feature maps
_SAVE_EVERY = 100  # steps


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of the networks, their training and their evaluation.

    Attributes:
        steps (int): Training steps. Default: 600.
        batch (int): Crops per step. Default: 4.
        crop (int): Height and width of the crops in pixels, a multiple of 4. Default: 96.
        channels (int): Output channels of the first convolution. Default: 16.
        lr (float): Peak learning rate of Adam with one cycle. Default: 2e-3.
        noise (float): Standard deviation of N_a, with mean 1, and of N_b, with mean 0. Default: 0.5.
        style (float): Weight of the style loss; that of the content loss is 1. Default: 2.
        variation (float): Weight of the total variation. Default: 0.5.
        draws (int): Draws of the noise in the evaluation of a photograph. Default: 10.
        sites (str): Regular expression for the normalizations that get an ASR, and whose γ starts at one half
            in the control. Default: the last one of every residual block, the paper's sites in a ResNet.
    """

    steps: int = 600
    batch: int = 4
    crop: int = 96
    channels: int = 16
    lr: float = 2e-3
    noise: float = 0.5
    style: float = 2.0
    variation: float = 0.5
    draws: int = 10
    sites: str = r'blocks\.\d\.norm2'


@dataclasses.dataclass
class Data:
    """The images of the experiment and the features that compare them.

    Attributes:
        train (list[Tensor]): Photographs to train on, uint8 (3, H, W).
        held_out (list[Tensor]): Photographs to evaluate on, likewise.
        style (Tensor): The style image, likewise.
        features (nn.Module): See :func:`load_features`.
    """

    train: list[torch.Tensor]
    held_out: list[torch.Tensor]
    style: torch.Tensor
    features: nn.Module

    def digest(self) -> str:
        """Return a hash of all images and weights."""
        found = hashlib.sha256()
        images = [*self.train, torch.empty(0), *self.held_out, torch.empty(0), self.style]
        for tensor in (*images, *self.features.state_dict().values()):
            found.update(f'{tuple(tensor.shape)}'.encode() + tensor.numpy().tobytes())
        return found.hexdigest()


@dataclasses.dataclass
class Losses:
    """Mean losses of a network on the held-out photographs, relative as in :class:`PerceptualLoss`."""

    style: float
    content: float


@dataclasses.dataclass
class Folded:
    """The same network after folding, with the same noise.

    Attributes:
        parameters (int): Number of parameters.
        losses (Losses): Its losses.
        difference (float): Largest difference between its pictures and those of the trained network, whose
            values are in [0, 1].
    """

    parameters: int
    losses: Losses
    difference: float


@dataclasses.dataclass
class Run:
    """Result of one training.

    Attributes:
        network (str): Variant, a key of :data:`NETWORKS`.
        seed (int): Seed of weights, crops and noise.
        parameters (int): Number of parameters in training.
        losses (Losses): Losses of the trained network.
        folded (Folded, optional): The folded network, if the trained one has an ASR.
    """

    network: str
    seed: int
    parameters: int
    losses: Losses
    folded: Folded | None = None


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode='reflect')


class ResidualBlock(nn.Module):
    """Residual block without a ReLU after the addition.

    Args:
        channels (int): Number of channels.
        norm (callable): Normalization, channels -> module.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, channels, 3), norm(channels)
        self.conv2, self.norm2 = _conv(channels, channels, 3), norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform features (N, C, H, W)."""
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


class StyleNetwork(nn.Module):
    """The style transfer network of Johnson et al., arXiv 1603.08155, which uses 32 channels.

    Args:
        channels (int): Output channels of the first convolution.
        norm (callable): Normalization, channels -> module.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        c = channels

        def layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
            parts = {'conv': _conv(inputs, outputs, kernel, stride), 'norm': norm(outputs), 'relu': nn.ReLU()}
            return nn.Sequential(OrderedDict(parts))

        self.down = nn.Sequential(layer(3, c, 9), layer(c, 2 * c, 3, 2), layer(2 * c, 4 * c, 3, 2))
        self.blocks = nn.Sequential(*(ResidualBlock(4 * c, norm) for _ in range(5)))
        self.up = nn.Sequential(
            *(nn.Upsample(scale_factor=2), layer(4 * c, 2 * c)),
            *(nn.Upsample(scale_factor=2), layer(2 * c, c)),
        )
        self.out = _conv(c, 3, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stylize images (N, 3, H, W) with values in [0, 1]; H and W are multiples of 4."""
        return self.out(self.up(self.blocks(self.down(2 * x - 1)))).sigmoid()


def build_network(name: str, recipe: Recipe) -> nn.Module:
    """Build a network with random weights.

    Args:
        name (str): Variant, a key of :data:`NETWORKS`. The control, ``noise_half``, has no ASR, but γ starts
            at one half at its sites, like ASR's scale.
        recipe (Recipe): Number of channels, noise and sites.

    Returns:
        nn.Module: The network in training mode.

    Raises:
        InputError: If no normalization has the name of a site.
    """
    norm = (lambda channels: nn.InstanceNorm2d(channels, affine=True)) if name == 'in' else nn.BatchNorm2d
    network = StyleNetwork(recipe.channels, norm)
    if name.startswith('noise'):
        add_noise(network, {'std': recipe.noise}, {'std': recipe.noise})
    if name == 'noise_asr_se':
        attach(network, {'type': 'SE'}, _find_sites(network, recipe.sites))
    if name == 'noise_half':
        for site in _find_sites(network, recipe.sites):
            nn.init.constant_(network.get_submodule(site).weight, 0.5)
    return network


def _find_sites(network: nn.Module, sites: str) -> list[str]:
    norms = [name for name, module in network.named_modules() if isinstance(module, NoisyBN)]
    with as_input_error(f'`sites` {sites} is not a regular expression'):
        found = [name for name in norms if re.fullmatch(sites, name)]
    if not found:
        raise InputError(f'`sites` {sites}: no normalization has such a name; there are {", ".join(norms)}')
    return found


def load_features(name: str, weights: str | Path) -> nn.Module:
    """Build a pretrained network that returns four feature maps of an image (N, 3, H, W) in [0, 1].

    Args:
        name (str): ``efficientnet_lite0``, with maps at strides 2, 4, 8 and 16; or ``vgg16``, with maps at
            strides 1, 2, 4 and 8.
        weights (str | Path): Weights: for EfficientNet-Lite0 the file that tools/convert.py writes or a state
            dict of timm's ``tf_efficientnet_lite0``; for VGG16 a state dict of torchvision's ``vgg16``.

    Returns:
        nn.Module: The frozen network in eval mode.

    Raises:
        InputError: If the name is unknown, a package is missing, or the weights do not exist or do not fit.
    """
    if name not in FEATURES:
        raise InputError(f'`features` {name}: unknown; choose from {", ".join(FEATURES)}')
    if not Path(weights).is_file():
        raise InputError(f'{weights}: no such file; `features` needs the weights of {name}')
    with as_input_error(f"{weights}: can't be read as weights"):
        content = torch.load(weights, map_location='cpu', weights_only=True)
    if isinstance(content, dict):
        content = content.get('state_dict', content)
    if not isinstance(content, dict):
        raise InputError(f'{weights}: not the weights of {name}, but a {type(content).__name__}')
    state = {str(key).removeprefix('backbone.timm_model.'): value for key, value in content.items()}
    with as_input_error(f"can't build {name}, which needs timm or torchvision"), torch.device('meta'):
        network = _vgg16() if name == 'vgg16' else _lite0()
    own = network.state_dict()
    if wrong := [key for key in own if getattr(state.get(key), 'shape', None) != own[key].shape]:
        raise InputError(f'{weights}: not the weights of {name}; {wrong[0]} is missing or has another shape')
    network.load_state_dict({key: state[key] for key in own}, assign=True)
    return _Features(network, *FEATURES[name]).eval().requires_grad_(False)


def _lite0() -> nn.Module:
    import timm

    return timm.create_model('tf_efficientnet_lite0', features_only=True, out_indices=(0, 1, 2, 3))


def _vgg16() -> nn.Module:
    import torchvision

    return _VGG16(torchvision.models.vgg16().features[: int(_VGG_LAYERS[-1]) + 1])


class _VGG16(nn.Module):
    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for name, module in self.features.named_children():
            x = module(x)
            if name in _VGG_LAYERS:
                found.append(x.clone())  # the next ReLU works in place
        return found


class _Features(nn.Module):
    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(3, 1, 1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network((x - self.mean) / self.std)


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """Return the products of the channels (N, C, C), averaged over the positions of (N, C, H, W)."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


class PerceptualLoss:
    """Content and style losses relative to their targets.

    The content loss is ‖φ(y) - φ(x)‖² / ‖φ(x)‖² on the third feature map φ, with the photograph x and the
    picture y. The style loss is the same for the Gram matrices of picture and style image, summed over all
    four maps. Both are means over the batch.

    Args:
        features (nn.Module): See :func:`load_features`.
        style (Tensor): Style image, uint8 (3, H, W).
    """

    def __init__(self, features: nn.Module, style: torch.Tensor) -> None:
        self.features = features
        with torch.no_grad():
            self.targets = [gram_matrix(found) for found in features(_batch([style]))]

    def __call__(
        self, pictures: torch.Tensor, photographs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the content loss and the style loss.

        Args:
            pictures (Tensor): Output of the network, (N, 3, H, W) in [0, 1].
            photographs (Tensor): Its input, likewise.
        """
        found = self.features(pictures)
        with torch.no_grad():
            content = self.features(photographs)[_CONTENT]
        grams = [gram_matrix(one) for one in found]
        style = sum(
            _relative(gram, target.expand_as(gram)) for gram, target in zip(grams, self.targets, strict=True)
        )
        return _relative(found[_CONTENT], content), style


def _relative(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((found - target).flatten(1).square().sum(1) / target.flatten(1).square().sum(1)).mean()


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of vertical neighbors plus that of horizontal neighbors."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def _batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return uint8 images as one batch with values in [0, 1]."""
    return torch.stack(list(images)) / 255


def _crops(images: Sequence[torch.Tensor], recipe: Recipe) -> torch.Tensor:
    """Draw a batch of random crops, half of them flipped."""
    found = []
    for _ in range(recipe.batch):
        image = images[int(torch.randint(len(images), ()))]
        top, left = (int(torch.randint(side - recipe.crop + 1, ())) for side in image.shape[1:])
        crop = image[:, top : top + recipe.crop, left : left + recipe.crop]
        found.append(crop.flip(2) if torch.rand(()) < 0.5 else crop)
    return _batch(found)


def train(name: str, seed: int, data: Data, recipe: Recipe, folder: Path, track: Track) -> nn.Module:
    """Train a network, or load it if the folder has it.

    ``checkpoint.pth`` in the folder is written every 100 steps. An interrupted training continues from it and
    gives the same weights as one that was not interrupted. Networks with the same seed start from the same
    convolutions and get the same crops.

    Args:
        name (str): Variant, a key of :data:`NETWORKS`.
        seed (int): Seed of weights, crops and noise.
        data (Data): Photographs, style image and features.
        recipe (Recipe): The recipe.
        folder (Path): Folder for the checkpoint.
        track (callable): Progress bar like ``rich.progress.track``.

    Returns:
        nn.Module: The trained network in eval mode.

    Raises:
        InputError: If the folder has a training with other images, weights or settings, or if the loss is NaN
            or infinite.
    """
    settings = {**dataclasses.asdict(recipe), 'network': name, 'seed': seed, 'data': data.digest()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(name, recipe)
        optimizer = torch.optim.Adam(network.parameters(), recipe.lr)
        parts = {'network': network, 'optimizer': optimizer}
        file = folder / 'checkpoint.pth'
        done = _load(file, settings, parts) if file.exists() else 0
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, recipe.lr, recipe.steps, last_epoch=done - 1
        )
        loss_of = PerceptualLoss(data.features, data.style)
        for step in track(range(done, recipe.steps), f'{NETWORKS[name]}, seed {seed}'):
            torch.manual_seed(seed * recipe.steps + step)  # so that nothing has to be saved of the generator
            photographs = _crops(data.train, recipe)
            pictures = network(photographs)
            content, style = loss_of(pictures, photographs)
            loss = content + recipe.style * style + recipe.variation * total_variation(pictures)
            if not loss.isfinite():
                raise InputError(
                    f'{NETWORKS[name]}, seed {seed}: the loss is {loss.item()} in step {step}; '
                    'pass a smaller `lr`'
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == recipe.steps:
                states = {part: value.state_dict() for part, value in parts.items()}
                with temporary_files(file) as (temporary,):
                    torch.save({'step': step + 1, 'settings': settings, **states}, temporary)
    return network.eval()


def _load(file: Path, settings: dict, parts: dict) -> int:
    """Load a checkpoint into the parts of a training; return the number of finished steps."""
    with as_input_error(f"{file}: can't be read as a checkpoint of this experiment"):
        checkpoint = torch.load(file, weights_only=True)
        _check_settings(file, checkpoint['settings'], settings)
        for part, value in parts.items():
            value.load_state_dict(checkpoint[part])
        return checkpoint['step']


def _check_settings(file: Path, found: dict, settings: dict) -> None:
    if differing := [key for key in settings if found.get(key) != settings[key]]:
        names = ', '.join('images or weights of the features' if key == 'data' else key for key in differing)
        raise InputError(f'{file} is from a run with another value of: {names}; choose another `out`')


@torch.no_grad()
def evaluate(network: nn.Module, data: Data, draws: int) -> tuple[Losses, list[torch.Tensor]]:
    """Evaluate a network on the held-out photographs, one at a time.

    The noise is drawn anew for every photograph and draw. It is the same in every call.

    Args:
        network (nn.Module): A network in eval mode.
        data (Data): Photographs, style image and features.
        draws (int): Draws of the noise for each photograph.

    Returns:
        tuple[Losses, list[Tensor]]: Mean losses, and the picture (3, H, W) of each photograph with the first
        draw, in [0, 1].
    """
    loss_of = PerceptualLoss(data.features, data.style)
    found, pictures = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for draw, image in itertools.product(range(draws), data.held_out):
            photograph = _batch([image])
            picture = network(photograph)
            found.append([loss.item() for loss in loss_of(picture, photograph)])
            if draw == 0:
                pictures.append(picture[0])
    content, style = (fmean(losses) for losses in zip(*found, strict=True))
    return Losses(style, content), pictures


def run_experiment(
    names: Sequence[str],
    seeds: int,
    data: Data,
    out: str | Path,
    recipe: Recipe = Recipe(),
    track: Track = lambda items, _: items,
) -> Iterator[tuple[Run, list[torch.Tensor]]]:
    """Train and evaluate networks with the seeds 0, 1, ..., in the folders ``<out>/<network>/<seed>``.

    Finished trainings are not repeated, and an interrupted one continues: see :func:`train`.

    Args:
        names (Sequence[str]): Variants, keys of :data:`NETWORKS`.
        seeds (int): Number of seeds.
        data (Data): Photographs, style image and features.
        out (str | Path): Folder for the checkpoints.
        recipe (Recipe): The recipe. Default: ``Recipe()``.
        track (callable): Progress bar like ``rich.progress.track``. Default: none.

    Yields:
        tuple[Run, list[Tensor]]: The result of a training, and the pictures of :func:`evaluate`: all networks
        with one seed before the next seed.

    Raises:
        InputError: If a number is out of range or a photograph is smaller than a crop; see also
            :func:`train`.
    """
    _check_numbers(recipe, seeds, data)
    for seed, name in itertools.product(range(seeds), names):
        folder = Path(out, name, str(seed))
        folder.mkdir(parents=True, exist_ok=True)
        network = train(name, seed, data, recipe, folder, track)
        losses, pictures = evaluate(network, data, recipe.draws)
        run = Run(name, seed, _size(network), losses)
        if name == 'noise_asr_se':
            network = fold(network)
            losses, others = evaluate(network, data, recipe.draws)
            differences = (a - b for a, b in zip(pictures, others, strict=True))
            run.folded = Folded(_size(network), losses, max(d.abs().max().item() for d in differences))
        yield run, pictures


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _check_numbers(recipe: Recipe, seeds: int, data: Data) -> None:
    positive = ('seeds', 'steps', 'batch', 'crop', 'channels', 'lr', 'draws')
    for name, value in {'seeds': seeds, **dataclasses.asdict(recipe)}.items():
        if name in positive and value <= 0:
            raise InputError(f'`{name}` {value}: must be greater than 0')
    if recipe.crop % 4:
        raise InputError(
            f'`crop` {recipe.crop}: must be a multiple of 4, because the network has two strides'
        )
    smallest = min(min(image.shape[1:]) for image in data.train)
    if smallest < recipe.crop:
        raise InputError(f'`crop` {recipe.crop}: larger than a photograph, whose shorter side is {smallest}')


def draw_pictures(data: Data, pictures: dict[str, list[torch.Tensor]]) -> 'Figure':
    """Draw the held-out photographs in rows and the networks in columns, like Fig. 5 of the paper.

    Args:
        data (Data): Its style image is on the left.
        pictures (dict[str, list[Tensor]]): Titles of the columns -> the pictures (3, H, W) of all held-out
            photographs.

    Returns:
        matplotlib.figure.Figure: The figure.
    """
    columns = {
        'style': [data.style],
        'photograph': data.held_out,
        **{title: [(255 * one).round().byte() for one in column] for title, column in pictures.items()},
    }
    shape = len(data.held_out), len(columns)
    heights = [max(image.shape[1] / image.shape[2], 0.5) for image in data.held_out]
    figure, axes = panels(1.1 * shape[1], 1.1 * sum(heights) + 0.2, *shape)
    for ax in axes.flat:
        ax.set_axis_off()
    for (title, column), places in zip(columns.items(), axes.T, strict=True):
        places[0].set_title(title.replace(' + ', '\n+ ', 1), fontsize=TEXT)
        for image, ax in zip(column, places, strict=False):
            ax.imshow(image.permute(1, 2, 0).numpy())
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # inches
    return figure
