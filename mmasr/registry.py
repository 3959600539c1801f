"""Registries of the scope ``mmasr``.

They are children of mmengine's registries, so any config can name a type such as ``mmasr.ASRResNet``.
"""

from importlib import import_module

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from .attention import ATTENTIONS


class OnDemandRegistry(Registry):
    """Registry that imports the file of a type only when a config asks for that type.

    The files need different packages. A missing or broken package therefore affects only the types that need
    it.

    Args:
        name (str): Name of the registry.
        files (dict[str, tuple[str, ...]]): Module, relative to ``mmasr`` -> names that it registers.
        **kwargs: Other arguments of mmengine's ``Registry``.
    """

    def __init__(self, name: str, files: dict[str, tuple[str, ...]], **kwargs) -> None:
        super().__init__(name, scope='mmasr', **kwargs)
        self.file_of = {registered: file for file, names in files.items() for registered in names}

    def load(self, name: str) -> None:
        """Import the file of a name; do nothing for an unknown name.

        A file that needs torch only does not register its classes, so they are registered here.
        """
        if name in self.file_of:
            module = import_module(f'mmasr.{self.file_of[name]}')
            if name not in self.module_dict:
                self.register_module(name, module=getattr(module, name))

    def load_module(self, module: str) -> None:
        """Import a module and register its names; do nothing for a module that registers none."""
        for name, file in self.file_of.items():
            if module == f'mmasr.{file}':
                self.load(name)

    def get(self, key: str) -> type | None:
        """Return the type of a name, or None if it is unknown; see mmengine's ``Registry.get``."""
        self.load(key.rpartition('.')[2])
        return super().get(key)


MODELS = OnDemandRegistry(
    'model',
    parent=MMENGINE_MODELS,
    files={
        'openmmlab.plugins': ('ASR', 'DIA', *ATTENTIONS),
        'openmmlab.with_attention': ('WithAttention',),
        'openmmlab.without_attention': ('WithoutAttention',),
        'openmmlab.backbones.wrapper': ('ASRBackbone',),
        'openmmlab.backbones.resnet': ('ASRResNet', 'ASRResNetV1d', 'ASRResNeXt', 'ASRResNetCIFAR'),
        'openmmlab.backbones.mobilenet': ('ASRMobileNet',),
        'openmmlab.backbones.pretrain': (
            'ASRVGG',
            'ASRRepVGG',
            'ASRShuffleNetV2',
            'ASRShuffleNetV2CIFAR',
            'ASRMobileNetV2',
            'ASRVisionTransformer',
        ),
        'openmmlab.backbones.segmentation': ('ASRResNetV1c',),
        'openmmlab.networks.resnet_cifar': ('ResNetCIFAR',),
        'openmmlab.networks.mobilenet': ('MobileNet',),
        'openmmlab.networks.shufflenet_cifar': ('ShuffleNetV2CIFAR',),
        'experiments.noise': ('NoisyBN',),
    },
)
OPTIM_WRAPPERS = OnDemandRegistry(
    'optimizer wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    files={'openmmlab.hooks': ('BFloat16OptimWrapper',)},
)
HOOKS = OnDemandRegistry(
    'hook',
    parent=MMENGINE_HOOKS,
    files={'stripes.hook': ('StripeHook',), 'openmmlab.hooks': ('ChannelsLastHook',)},
)
DATASETS = OnDemandRegistry('dataset', parent=MMENGINE_DATASETS, files={'openmmlab.datasets': ('STL10',)})
WEIGHT_INITIALIZERS = OnDemandRegistry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    files={'openmmlab.initializers': ('SitesConstant',)},
)
