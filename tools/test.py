"""Evaluate a checkpoint.

Example:
    python tools/test.py configs/mask_rcnn_r50_asr_se.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth
"""

import argparse
import os

from mmengine.evaluator import DumpResults

from mmasr.errors import InputError, as_input_error, exit_on_input_error
from mmasr.openmmlab.arguments import add_arguments, config_from_arguments
from mmasr.openmmlab.building import build_loops, build_runner
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.hooks import MatchingFormHook
from mmasr.untrusted import data_only, open_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='also write the predictions to this file')
    parser.add_argument(
        '--show-dir', metavar='DIR', help='also draw the predictions into this folder in the work dir'
    )
    add_arguments(parser)
    return parser.parse_args()


@data_only()
def main() -> None:
    args = parse_args()
    config = config_from_arguments(args)
    config.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in config.get('default_hooks', {}):
            raise InputError(
                f'--show-dir needs default_hooks.visualization, which {args.config} does not have'
            )
        hook = config.default_hooks.visualization
        hook.draw = True
        if hook.type.endswith('SegVisualizationHook'):
            # It draws into the visualizer's folder, vis_data in the work dir; upstream only every 50th image.
            hook.interval = 1
            for backend in config.visualizer.vis_backends:
                backend.img_save_dir = os.path.join('..', args.show_dir)
        else:
            hook.test_out_dir = args.show_dir
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {args.out}: the predictions are written as a pickle, so name it *.pkl')
    if '://' not in args.checkpoint:
        open_checkpoint(args.checkpoint)
    check_data(config, 'test_dataloader', 'test_evaluator')
    runner = build_runner(config)
    build_loops(runner, 'test')
    runner.register_hook(MatchingFormHook(trains=False))
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with as_input_error('the evaluation failed'):
        runner.test()


if __name__ == '__main__':
    exit_on_input_error(main)
