"""Show and measure whether attention depends on the image: the Stripe Observation.

Example: python tools/stripes.py configs/mask_rcnn_r50_se.py epoch_12.pth
"""

import argparse
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from rich.console import Console
from rich.progress import track

import mmasr
from mmasr.deploy.compare import is_detector
from mmasr.errors import InputError, exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_output, add_settings
from mmasr.openmmlab.config import load_config
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.evaluation import build_loader, evaluate, untracked
from mmasr.processes import join_processes
from mmasr.stripes import Observer
from mmasr.stripes.report import check_folder, stripes_table, write_report
from mmasr.untrusted import data_only, open_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file with the test data to use')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--images', type=int, metavar='N', help='use N random images, the same in every run (default: all)'
    )
    add_output(parser, 'DIR', 'folder to write to (default: work_dirs/<config>/stripes)')
    parser.add_argument(
        '--modules',
        nargs='+',
        default=[],
        metavar='NAME',
        help='modules to draw (default: four, spread evenly over the network)',
    )
    add_settings(parser)
    return parser.parse_args()


@data_only()
def main() -> None:
    args = parse_args()
    if args.images is not None and args.images < 2:
        raise InputError(
            f'--images {args.images}: a standard deviation needs at least two images; use a few hundred'
        )
    out = args.out or Path('work_dirs', Path(args.config).stem, 'stripes')
    check_folder(out, args.force)
    config = load_config(args.config)
    config.merge_from_dict(args.cfg_options)
    check_data(config, 'test_dataloader')
    model = open_checkpoint(args.checkpoint).network(config).model
    rank, device = join_processes(get_device())
    observer = Observer(model)
    if unknown := [name for name in args.modules if name not in observer.modules]:
        raise InputError(
            f'--modules {unknown[0]}: no such attention module; there are {", ".join(observer.modules)}'
        )
    loader = build_loader(config, images=args.images)
    with observer:
        evaluate(model.to(device), loader, [], untracked if rank else track, 'running')
    shares = all_gather_object(observer.stripes)
    if rank:
        return
    observer.stripes = {}
    observer.combine(shares)
    never = observer.check()
    stripes = list(observer.stripes.values())
    about = {
        'config': args.config,
        'checkpoint': args.checkpoint,
        'dataset': config.test_dataloader.dataset.get('type'),
        'images': len(loader.dataset),
        'mmasr': mmasr.__version__,
        'torch': torch.__version__,
    }
    paths = write_report(out, stripes, about, is_detector(model), args.modules, args.force)
    Console(markup=False).print(stripes_table(stripes))
    if never:
        print(printable(f'left out, because they never ran: {", ".join(never)}'))
    if spatial := [s.name for s in stripes if s.spatial]:
        print(printable(f'shown without their spatial maps: {", ".join(spatial)}'))
    print(printable(f'wrote {" ".join(map(str, paths))}'))


if __name__ == '__main__':
    exit_on_input_error(main)
