"""mmasr's registries, children of mmengine's, so that any config can name ``mmasr.ASRResNet``."""

from importlib import import_module

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from .attention import ATTENTIONS


class OnDemandRegistry(Registry):
    """A registry that imports the file of a type when that type is asked for, and no other: each needs other packages, and
    a package that is missing or broken takes down only what needs it.

    Args:
        name (str): Name of the registry.
        files (dict[str, tuple[str, ...]]): Module -> names that it registers.
        **kwargs: Other arguments of mmengine's Registry.
    """

    def __init__(self, name: str, files: dict[str, tuple[str, ...]], **kwargs) -> None:
        super().__init__(name, scope='mmasr', **kwargs)
        self.file_of = {registered: file for file, names in files.items() for registered in names}

    def load(self, name: str) -> None:
        """Import the file that registers a name, or that has a class of that name where it needs torch only; nothing for a name
        that none does."""
        if name in self.file_of:
            module = import_module(f'mmasr.{self.file_of[name]}')
            if name not in self.module_dict:
                self.register_module(name, module=getattr(module, name))

    def get(self, key: str) -> type | None:
        """As of mmengine's Registry."""
        self.load(key.rpartition('.')[2])
        return super().get(key)


MODELS = OnDemandRegistry(
    'model',
    parent=MMENGINE_MODELS,
    files={
        'openmmlab.plugins': ('ASR', 'DIA', *ATTENTIONS),
        'openmmlab.without_attention': ('WithoutAttention',),
        'openmmlab.backbones.wrapper': ('ASRBackbone',),
        'openmmlab.backbones.resnet': ('ASRResNet', 'ASRResNetV1d', 'ASRResNeXt', 'ASRResNetCIFAR'),
        'openmmlab.backbones.mobilenet': ('ASRMobileNet',),
        'openmmlab.backbones.pretrain': (
            *('ASRVGG', 'ASRRepVGG', 'ASRShuffleNetV2', 'ASRShuffleNetV2CIFAR', 'ASRMobileNetV2', 'ASRVisionTransformer'),
        ),
        'openmmlab.backbones.segmentation': ('ASRResNetV1c',),
        'openmmlab.networks.resnet_cifar': ('ResNetCIFAR',),
        'openmmlab.networks.mobilenet': ('MobileNet',),
        'openmmlab.networks.shufflenet_cifar': ('ShuffleNetV2CIFAR',),
        'experiments.noise': ('NoisyBN',),
    },
)
OPTIM_WRAPPERS = OnDemandRegistry(
    'optimizer wrapper', parent=MMENGINE_OPTIM_WRAPPERS, files={'openmmlab.training': ('BFloat16OptimWrapper',)}
)
HOOKS = OnDemandRegistry(
    'hook', parent=MMENGINE_HOOKS, files={'stripes.hook': ('StripeHook',), 'openmmlab.training': ('ChannelsLastHook',)}
)
DATASETS = OnDemandRegistry('dataset', parent=MMENGINE_DATASETS, files={'openmmlab.datasets': ('STL10',)})
WEIGHT_INITIALIZERS = OnDemandRegistry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, files={'openmmlab.initializers': ('SitesConstant',)}
)
