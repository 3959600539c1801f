"""Train a detector, a segmentor or a classifier.

Example: python tools/train.py configs/mask_rcnn_r50_asr_se.py
"""

import argparse

import torch

from mmasr.errors import InputError, as_input_error, exit_on_input_error, printable
from mmasr.openmmlab.arguments import add_arguments, config_from_arguments
from mmasr.openmmlab.building import build_loops, build_runner, failures_logged
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.hooks import FiniteLossHook, MatchingFormHook
from mmasr.untrusted import data_only
from mmasr.untrusted.resuming import ResumeHook, checkpoint_to_resume, last_finite_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT; without a value, from the newest checkpoint in the work dir',
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the total batch size'
    )
    add_arguments(parser)
    return parser.parse_args()


@data_only()
def main() -> None:
    args = parse_args()
    config = config_from_arguments(args)
    if args.amp:
        if not torch.cuda.is_available():
            raise InputError('--amp needs a GPU, and torch finds none')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise InputError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {args.config} does not have'
            )
        config.auto_scale_lr.enable = True
    if args.resume:
        config.load_from = checkpoint_to_resume(args.resume, config.work_dir)
        config.resume = config.load_from is not None
        how = (
            f'resuming from {config.load_from}'
            if config.resume
            else f'no checkpoint in {config.work_dir}: starting anew'
        )
        print(printable(how))
    check_data(config, 'train_dataloader', 'val_dataloader', 'val_evaluator')
    runner = build_runner(config)
    build_loops(runner, 'train', 'val')
    for hook in (ResumeHook(), MatchingFormHook(trains=True), FiniteLossHook(last_finite_checkpoint)):
        runner.register_hook(hook)
    with failures_logged(runner), as_input_error('the training failed'):
        runner.train()


if __name__ == '__main__':
    exit_on_input_error(main)
