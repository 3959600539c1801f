"""Demo on generated data: train with ASR, evaluate, re-parameterize, and evaluate the deployed network.

``make demo`` runs it; it takes 6 to 9 minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import mmdet
import torch
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.ops import nms

from mmasr.plots import SMALL, TEXT, panels

TOOLS = Path(__file__).parent
CONFIG = TOOLS.parent / 'configs/shapes/mask_rcnn_r18_asr_se.py'
WORK_DIR = Path('work_dirs/demo')
DEPLOYED = WORK_DIR / 'deployed.pth'
# MMDetection's own test script, in an interpreter that cannot import mmasr.
STOCK_TEST = f"""
import runpy, sys
sys.modules['mmasr'] = None
runpy.run_path({str(Path(mmdet.__file__).parent / '.mim/tools/test.py')!r}, run_name='__main__')
"""


def run(*command: str | Path) -> None:
    """Print a command and run it; exit if it fails."""
    shown = ('tools/test.py (of MMDetection)', *command[2:]) if command[0] == '-c' else command
    print('\n$ python', *shown, flush=True)
    if status := subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        sys.exit(status)


def metrics(work_dir: Path) -> dict[str, float]:
    """Return the metrics of the newest evaluation in a work dir."""
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


@torch.no_grad()
def milliseconds(models: list[nn.Module], images: list[str], rounds: int = 3) -> list[float]:
    """Measure the inference time of models that take turns.

    Args:
        models (list[nn.Module]): Detectors.
        images (list[str]): Paths of images.
        rounds (int): Number of rounds over all images. Default: 3.

    Returns:
        list[float]: Median time per image of each model, in milliseconds.
    """
    times = [[] for _ in models]
    for _ in range(rounds):
        for image in images:
            for model, spent in zip(models, times, strict=True):
                start = time.perf_counter()
                inference_detector(model, image)
                spent.append(1000 * (time.perf_counter() - start))
    return [median(spent) for spent in times]


def draw(models: dict[str, nn.Module], dataset, count: int, path: Path) -> None:
    """Draw images with the ground truth and the predictions of every model.

    Args:
        models (dict[str, nn.Module]): Title -> detector.
        dataset (Dataset): Dataset of MMDetection with annotations.
        count (int): Number of images, the first ones of the dataset.
        path (Path): File to write.
    """
    figure, axes = panels(2.2 * (1 + len(models)), 2.2 * count, count, 1 + len(models))
    for index, row in enumerate(axes):
        sample = dataset[index]['data_samples']
        truth = sample.gt_instances
        columns = {'ground truth': (truth.masks.to_ndarray(), truth.labels.tolist(), None)}
        for name, model in models.items():
            found = inference_detector(model, sample.img_path).pred_instances
            found = found[(found.scores > 0.5) & found.masks.flatten(1).any(dim=1)]
            found = found[nms(found.bboxes, found.scores, 0.5)]  # class-agnostic, so one box per shape
            columns[name] = (found.masks.numpy(), found.labels.tolist(), found.scores.tolist())
        image = imread(sample.img_path)
        for ax, (title, (masks, labels, scores)) in zip(row, columns.items(), strict=True):
            ax.imshow(image)
            for i, (mask, label) in enumerate(zip(masks, labels, strict=True)):
                color = f'C{label}'
                ax.imshow(mask[..., None] * to_rgba(color, 0.45))
                ax.contour(mask, levels=[0.5], colors=color, linewidths=1)
                y, x = (side.mean() for side in mask.nonzero())
                name = dataset.metainfo['classes'][label] + (f' {scores[i]:.2f}' if scores else '')
                box = {'color': 'black', 'alpha': 0.5, 'pad': 1}
                ax.text(x, y, name, ha='center', va='center', fontsize=SMALL, color='white', bbox=box)
            ax.set_axis_off()
            if index == 0:
                ax.set_title(title, fontsize=TEXT)
    figure.savefig(path)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # without options, and --help runs nothing
    run(TOOLS / 'shapes.py', 'data/shapes')
    start = time.perf_counter()
    run(TOOLS / 'train.py', CONFIG, '--work-dir', WORK_DIR / 'train')
    training = time.perf_counter() - start
    trained = Path((WORK_DIR / 'train/last_checkpoint').read_text())
    run(TOOLS / 'test.py', CONFIG, trained, '--work-dir', WORK_DIR / 'test_trained')
    run(TOOLS / 'reparam.py', trained, '--out', DEPLOYED, '--force')
    stock_config = DEPLOYED.with_suffix('.py')
    run('-c', STOCK_TEST, stock_config, DEPLOYED, '--work-dir', WORK_DIR / 'test_deployed')

    models = {
        'trained': init_detector(str(CONFIG), str(trained), device='cpu'),
        'deployed': init_detector(str(stock_config), str(DEPLOYED), device='cpu'),
    }
    dataset = DATASETS.build(Config.fromfile(CONFIG).val_dataloader.dataset)
    images = [dataset.get_data_info(i)['img_path'] for i in range(20)]
    picture = WORK_DIR / 'predictions.png'
    draw(models, dataset, 4, picture)
    found = [metrics(WORK_DIR / name) for name in ('test_trained', 'test_deployed')]
    table = Table('', *models, title='Mask R-CNN with ASR(SE), trained and deployed')
    for label, key in (('box AP', 'coco/bbox_mAP'), ('mask AP', 'coco/segm_mAP')):
        table.add_row(label, *(f'{metric[key]:.3f}' for metric in found))
    table.add_row(
        'parameters', *(f'{sum(p.numel() for p in model.parameters()):,}' for model in models.values())
    )
    table.add_row('ms per image', *(f'{spent:.1f}' for spent in milliseconds(list(models.values()), images)))
    console = Console()
    console.print(table)
    console.print(f'Training took {training / 60:.1f} minutes. Picture of the predictions: {picture}')
    if any(found[0][key] != found[1][key] for key in ('coco/bbox_mAP', 'coco/segm_mAP')):
        sys.exit('error: the deployed network and the trained one differ in accuracy')
    if found[0]['coco/segm_mAP'] < 0.70:
        sys.exit('error: the network did not learn enough: its mask AP should be about 0.8')


if __name__ == '__main__':
    main()
