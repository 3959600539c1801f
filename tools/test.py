"""Evaluate a checkpoint, or an exported network.

Example:
    python tools/test.py configs/mask_rcnn_r50_asr_se.py work_dirs/mask_rcnn_r50_asr_se/epoch_12.pth

ONNX Runtime computes files of tools/export.py, *.onnx. The second stage of a two-stage detector is not in
them; pass its weights with --cfg-options load_from=epoch_12_deploy.pth
"""

import argparse
import contextlib
import os
from collections.abc import Iterator

from mmengine.evaluator import DumpResults
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmasr.deploy.exported import Graph, computed_by, has_two_stages
from mmasr.errors import InputError, as_input_error, exit_on_input_error
from mmasr.openmmlab.arguments import add_arguments, config_from_arguments
from mmasr.openmmlab.building import build_loops, build_runner
from mmasr.openmmlab.data_sources import check_data
from mmasr.openmmlab.hooks import MatchingFormHook
from mmasr.untrusted import data_only, open_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or a file of tools/export.py')
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
    graph = None
    if args.checkpoint.endswith('.onnx'):
        with as_input_error(f'{args.checkpoint} is not a graph that ONNX Runtime can compute'):
            graph = Graph(args.checkpoint)
    config.load_from = args.cfg_options.get('load_from') if graph else args.checkpoint
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
    if config.load_from and '://' not in config.load_from:
        open_checkpoint(config.load_from)
    check_data(config, 'test_dataloader', 'test_evaluator')
    runner = build_runner(config)
    build_loops(runner, 'test')
    runner.register_hook(MatchingFormHook(trains=False))
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with as_input_error('the evaluation failed'), computing(runner, graph):
        runner.test()


@contextlib.contextmanager
def computing(runner: Runner, graph: Graph | None) -> Iterator[None]:
    """Let a graph, if there is one, compute the exported part of the runner's network.

    Args:
        runner (Runner): The runner.
        graph (Graph, optional): The graph.

    Raises:
        InputError: If it does not fit the network, or the weights of a second stage are missing.
    """
    if graph is None:
        yield
        return
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if has_two_stages(model) and not runner.cfg.load_from:
        raise InputError(
            'the graph does not include the second stage of the detector; pass its weights with '
            '`cfg_options` load_from=CHECKPOINT, the file that was exported'
        )
    model.eval()
    with computed_by(model, graph):
        yield


if __name__ == '__main__':
    exit_on_input_error(main)
