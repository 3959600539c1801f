"""Reduce the figure of tools/style_transfer.py to docs/style_transfer.png: 1000 pixels wide, 128 colors.

Example: python docs/_figures/style_transfer.py work_dirs/style_transfer/style_transfer.png
"""

import sys
from pathlib import Path

from PIL import Image

picture = Image.open(sys.argv[1]).convert('RGB')
size = 1000, round(1000 * picture.height / picture.width)
picture = picture.resize(size, Image.Resampling.LANCZOS).quantize(128)
picture.save(Path(__file__).parents[1] / 'style_transfer.png', optimize=True)
