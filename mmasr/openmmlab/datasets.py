"""A data set of the paper that MMPretrain does not have."""

from pathlib import Path

import numpy as np
from mmpretrain.datasets import BaseDataset

from ..registry import DATASETS


@DATASETS.register_module()
class STL10(BaseDataset):
    """STL10, Coates et al., "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011: photographs
    of 96 × 96 pixels, ten classes, in the binary files of https://cs.stanford.edu/~acoates/stl10/.

    Args:
        ann_file (str): File of the labels, a byte an image, from 1 to 10: ``train_y.bin`` or ``test_y.bin``.
        data_prefix (dict): ``images``, the file of the images: ``train_X.bin`` or ``test_X.bin``.
        **kwargs: Other arguments of mmpretrain's BaseDataset.

    Raises:
        ValueError: If the files don't have an image for every label.
    """

    METAINFO = {  # noqa: RUF012, as in the base class
        'classes': ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')
    }

    def load_data_list(self) -> list[dict]:
        """Read all images, RGB as they are stored, and their labels."""
        path = Path(self.data_prefix['images'])
        pixels, labels = np.fromfile(path, np.uint8), np.fromfile(self.ann_file, np.uint8)
        if len(pixels) != len(labels) * 3 * 96 * 96:
            raise ValueError(f'{path} does not hold one image of 3 × 96 × 96 bytes for each of the {len(labels)} labels')
        images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # each channel is stored column by column
        return [{'img': image, 'gt_label': int(label) - 1} for image, label in zip(images, labels, strict=True)]
