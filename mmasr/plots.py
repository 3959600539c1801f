"""Common style of all figures. Needs matplotlib, which is imported only when something is drawn."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

COLUMN = 3.5  # inches, one column of a paper
TEXT, SMALL, TICK = 6.5, 5.5, 2  # points
GRAY, RED = '#7a869a', '#c2410c'  # the reference, and the subject of the figure
#: Metrics of OpenMMLab -> labels.
METRICS = {
    'accuracy/top1': 'top-1 accuracy, %',
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'mIoU': 'mIoU, %',
}


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **sharing
) -> tuple['Figure', 'np.ndarray']:
    """Create a figure of empty panels.

    It does not use pyplot, so it needs no display and does not have to be closed.

    Args:
        width (float): Width in inches.
        height (float): Height in inches.
        rows (int): Number of rows of panels. Default: 1.
        columns (int): Number of panels in a row. Default: 1.
        **sharing: ``sharex`` and ``sharey`` of matplotlib's ``Figure.subplots``.

    Returns:
        tuple[Figure, ndarray]: The figure, and its axes as an array of shape (rows, columns).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=300, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **sharing)
    for ax in axes.flat:
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_fontsize(TEXT)
            axis.offsetText.set_fontsize(TEXT)
        ax.tick_params(labelsize=TEXT, length=TICK)
        ax.spines[['top', 'right']].set_visible(False)
    return figure, axes
