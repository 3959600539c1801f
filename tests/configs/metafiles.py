"""Write the model index: a metafile.yml in every folder of configs, and model-index.yml, which imports them.

MIM and other programs read it in OpenMMLab's schema. It lists neither weights nor results. Run this after
adding or removing a config: python tests/configs/metafiles.py
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
#: Folder -> data that its configs train on. The configs outside folders train on COCO or Cityscapes.
DATA = {
    'bccd': 'BCCD, blood cells',
    'cifar10': 'CIFAR-10',
    'cifar10_images': 'CIFAR-10',
    'cifar100': 'CIFAR-100',
    'digits': 'handwritten digits of scikit-learn',
    'imagenet': 'ImageNet-1k',
    'shapes': 'generated shapes',
    'stl10': 'STL-10',
}
SEGMENTORS = ('pspnet', 'deeplabv3plus')
#: Part of a config's name -> collection; the first one counts.
COLLECTION_OF = {'_asr': 'ASR', '_orepa': 'OREPA', '_xvolution': 'X-volution'}
COLLECTIONS = [
    {
        'Name': 'ASR',
        'Paper': {
            'Title': 'Stripe Observation Guided Inference Cost-free Attention Mechanism',
            'URL': 'https://arxiv.org/abs/2304.06345',
        },
        'README': 'docs/method.md',
    },
    {
        'Name': 'OREPA',
        'Paper': {
            'Title': 'Online Convolutional Re-parameterization',
            'URL': 'https://arxiv.org/abs/2204.00826',
        },
        'README': 'docs/convolutions.md',
    },
    {
        'Name': 'X-volution',
        'Paper': {
            'Title': 'X-volution: On the Unification of Convolution and Self-attention',
            'URL': 'https://arxiv.org/abs/2106.02253',
        },
        'README': 'docs/convolutions.md',
    },
]


def model(config: Path) -> dict:
    """Return the entry of a config."""
    folder = config.parent.name
    nested = folder != 'configs'
    collections = [name for part, name in COLLECTION_OF.items() if part in config.stem]
    data = DATA[folder] if nested else 'Cityscapes' if config.stem.startswith(SEGMENTORS) else 'COCO'
    return {
        'Name': f'{config.stem}_{folder}' if nested else config.stem,
        **({'In Collection': collections[0]} if collections else {}),
        'Metadata': {'Training Data': data},
        'Config': str(config.relative_to(ROOT)),
    }


def _models(folder: Path) -> list[dict]:
    return [model(config) for config in sorted(folder.glob('*.py'))]


def model_index() -> dict[Path, str]:
    """Return the files of the model index: path -> text."""
    folders = [ROOT / 'configs', *(ROOT / 'configs' / name for name in sorted(DATA))]
    files = {folder / 'metafile.yml': {'Models': _models(folder)} for folder in folders}
    index = {'Collections': COLLECTIONS, 'Import': [str(path.relative_to(ROOT)) for path in files]}
    return {path: _text(content) for path, content in {ROOT / 'model-index.yml': index, **files}.items()}


def _text(content: dict) -> str:
    return f'# Written by tests/configs/metafiles.py.\n{yaml.safe_dump(content, sort_keys=False, width=120)}'


if __name__ == '__main__':
    for path, text in model_index().items():
        path.write_text(text)
