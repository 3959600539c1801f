"""Evaluate a checkpoint: tools/test.py configs/mask_rcnn_r50_asr_se.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth"""

import argparse
import os

from mmengine.evaluator import DumpResults

from mmasr.errors import InputError, exit_on_input_error
from mmasr.openmmlab.arguments import add_arguments, config_from_arguments
from mmasr.openmmlab.building import build_runner
from mmasr.openmmlab.checkpoint import only_data, read_checkpoint
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.training import prepare


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='also write the predictions to this file')
    parser.add_argument('--show-dir', metavar='DIR', help='also draw the predictions, into this folder of the work dir')
    add_arguments(parser)
    return parser.parse_args()


@only_data()
def main() -> None:
    args = parse_args()
    config = config_from_arguments(args)
    config.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in config.get('default_hooks', {}):
            raise InputError(f'--show-dir needs default_hooks.visualization, which {args.config} does not have')
        hook = config.default_hooks.visualization
        hook.draw = True
        if hook.type.endswith('SegVisualizationHook'):  # it draws where the visualizer writes, into vis_data of the work dir
            hook.interval = 1  # upstream it draws one of fifty
            for backend in config.visualizer.vis_backends:
                backend.img_save_dir = os.path.join('..', args.show_dir)
        else:
            hook.test_out_dir = args.show_dir
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {args.out}: the predictions are written as a pickle, so name it *.pkl')
    if '://' not in args.checkpoint:
        read_checkpoint(args.checkpoint, mmap=True)
    check_data(config, 'test_dataloader', 'test_evaluator')
    runner = build_runner(config)
    prepare(runner, 'test')
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    exit_on_input_error(main)
