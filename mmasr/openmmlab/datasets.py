"""The paper's dataset that MMPretrain does not have: STL10."""

from pathlib import Path

import numpy as np
from mmpretrain.datasets import BaseDataset

from ..errors import InputError
from ..registry import DATASETS


@DATASETS.register_module()
class STL10(BaseDataset):
    """STL10: photographs of 96 × 96 pixels in ten classes.

    It reads the binary files of https://cs.stanford.edu/~acoates/stl10/. Paper: Coates et al., "An Analysis
    of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011.

    Args:
        ann_file (str): File of the labels, one byte (1 to 10) for each image: ``train_y.bin`` or
            ``test_y.bin``.
        data_prefix (dict): ``images``, the file of the images: ``train_X.bin`` or ``test_X.bin``.
        **kwargs: Other arguments of mmpretrain's ``BaseDataset``.

    Raises:
        InputError: If a file is not given or can't be read, or the number of images and labels differ.
    """

    METAINFO = {  # noqa: RUF012  as in the base class
        'classes': ('airplane', 'bird', 'car', 'cat', 'deer', 'dog', 'horse', 'monkey', 'ship', 'truck')
    }

    def load_data_list(self) -> list[dict]:
        """Read all images, in the stored order of channels (RGB), and their labels.

        Raises:
            InputError: See the class.
        """
        if 'images' not in self.data_prefix or not self.ann_file:
            raise InputError("STL10 needs ann_file='train_y.bin' and data_prefix=dict(images='train_X.bin')")
        path = Path(self.data_prefix['images'])
        try:
            pixels, labels = np.fromfile(path, np.uint8), np.fromfile(self.ann_file, np.uint8)
        except OSError as error:
            raise InputError(f"STL10 can't be read: {error}") from error
        if len(pixels) != len(labels) * 3 * 96 * 96:
            raise InputError(
                f'{path} does not hold one image of 3 × 96 × 96 bytes for each of the {len(labels)} labels'
            )
        # Each channel is stored column by column.
        images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        return [
            {'img': image, 'gt_label': int(label) - 1} for image, label in zip(images, labels, strict=True)
        ]
