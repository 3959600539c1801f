import json
import os
import re
import runpy
import subprocess
import sys
import time

import pytest
import torch
import torchvision
from forked import run_python
from helpers import ROOT, SHAPES_CONFIG, run_tool
from mmengine.analysis import FlopAnalyzer
from mmpretrain.models import RepVGG
from torch import nn

from mmasr import ASR
from mmasr.core.host import Host
from mmasr.experiments.benchmark.measure import Cost, flops, measure
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.network import config_model
from mmasr.experiments.benchmark.picture import draw_growth, draw_speed
from mmasr.experiments.benchmark.steps import inference, training_step
from mmasr.experiments.benchmark.tables import tables
from mmasr.experiments.benchmark.timing import ratio, time_in_turns
from mmasr.experiments.benchmark.variants import variants
from mmasr.experiments.benchmark.workload import Workload, images

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def linear(outputs: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, outputs), *more)


# The linear layer keeps its input and the loss the output, four images of eight floats; the weights are parameters. A sigmoid
# keeps its output, which is what the loss keeps: stored once. Two of them keep two.
@pytest.mark.parametrize(('sigmoids', 'outputs'), [(0, 1), (1, 1), (2, 2)])
def test_saved_for_backward_counts_what_autograd_keeps(sigmoids, outputs):
    model = linear(8, *(nn.Sigmoid() for _ in range(sigmoids)))
    workload = Workload(X, model, lambda model: model(X).square().sum())
    assert saved_for_backward(model, workload) == X.nbytes + outputs * 4 * 8 * 4


def test_everything_runs_in_every_round():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = time_in_turns(functions, range(20))
    assert calls[:6] == [*'aaabbb']
    rounds = {tuple(calls[i : i + 2]) for i in range(6, len(calls), 2)}
    assert rounds == {('a', 'b'), ('b', 'a')}  # in every order
    assert {name: len(times) for name, times in seconds.items()} == {'a': 20, 'b': 20}


def test_seconds_are_those_of_each_function():
    seconds = time_in_turns({'short': lambda: None, 'long': lambda: time.sleep(0.02)}, range(3))
    assert (seconds['long'] >= 0.02).all()
    assert (ratio(seconds['long'], seconds['short']) > 1).all()


def test_ratio_is_taken_within_a_round():
    reference = torch.tensor([1.0, 10.0, 2.0, 5.0], dtype=torch.double)
    torch.testing.assert_close(ratio(3 * reference, reference), torch.full((3,), 3.0, dtype=torch.double))


def test_a_training_step_is_one_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model[0].weight.clone()
    step = training_step(model, images(X))
    step()
    first = model[0].weight.grad.clone()
    step()
    assert first.abs().sum() > 0
    torch.testing.assert_close(model[0].weight.grad, first)  # not summed over the steps
    assert torch.equal(model[0].weight, before)
    assert model[1].running_mean.abs().sum() > 0


def test_an_inference_is_one_in_eval_mode_without_gradients():
    seen = []
    model = nn.Conv2d(3, 4, 3)
    model.register_forward_hook(lambda module, args, out: seen.append((module.training, out.requires_grad)))
    inference(model, images(X))()
    assert seen == [(False, False)]


@pytest.mark.parametrize('amp', [False, True])
def test_amp_computes_in_bfloat16(amp):
    seen = []
    model = nn.Conv2d(3, 4, 3)
    model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    training_step(model, images(X), amp)()
    inference(model, images(X), amp)()
    assert seen == [torch.bfloat16 if amp else torch.float32] * 2


def test_flops_agree_with_the_counter_of_mmengine():
    x = torch.randn(1, 3, 64, 64)
    for name, model in variants(torchvision.models.resnet18(), ['SE', 'ECA']).items():
        counter = FlopAnalyzer(model.eval(), (x,)).unsupported_ops_warnings(False)
        # mmengine's counts pooling as well, a per cent at this size.
        assert flops(model, images(x)) == pytest.approx(counter.total(), rel=0.02), name


def test_identical_networks_cost_the_same():
    torch.manual_seed(0)
    models = {name: torchvision.models.resnet18() for name in ('plain', 'twin')}
    plain, twin = measure(models, images(torch.randn(2, 3, 64, 64)), rounds=3)
    assert plain.inference_ratio == plain.training_ratio == [1, 1, 1]
    for _, middle, _ in (twin.inference_ratio, twin.training_ratio):
        assert 0.5 < middle < 2  # how close, a machine that does something else as well does not say
    assert (twin.parameters, twin.multiply_adds, twin.training_bytes) == (
        plain.parameters,
        plain.multiply_adds,
        plain.training_bytes,
    )


def cost(name: str, factor: float, on_gpu: bool = False) -> Cost:
    """That of a network ``factor`` times as slow as the plain one, with as many times the parameters."""
    return Cost(
        name=name,
        parameters=int(2e6 * factor),
        multiply_adds=int(3e9),
        inference=[0.1 * factor, 0.2 * factor, 9.0],
        inference_ratio=[0.5 * factor, factor, 2 * factor],
        inference_bytes=5 * 2**20 if on_gpu else None,
        training=[0.4 * factor],
        training_ratio=[factor] * 3,
        training_bytes=int(2**20 * factor),
    )


@pytest.mark.parametrize('on_gpu', [False, True])
def test_tables_say_what_was_measured(on_gpu):
    found = tables([cost('plain', 1, on_gpu), cost('SE', 2, on_gpu)], batch=8)
    memory = 'peak, MiB' if on_gpu else 'kept for backward, MiB'
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in found.splitlines() if '--' not in line]
    assert cells == [
        ['inference', 'parameters, M', 'multiply-adds, G', 'ms', 'images/s', '÷ plain', *['peak, MiB'] * on_gpu],
        ['plain', '2.00', '3.000', '200.0', '40.0', '1.000 (0.50-2.00)', *['5.0'] * on_gpu],
        ['SE', '4.00', '3.000', '400.0', '20.0', '2.000 (1.00-4.00)', *['5.0'] * on_gpu],
        [''],
        ['training step', 'ms', '÷ plain', memory, '÷ plain'],
        ['plain', '400.0', '1.000 (1.00-1.00)', '1.0', '1.0000'],
        ['SE', '800.0', '2.000 (2.00-2.00)', '2.0', '2.0000'],
    ]


def test_the_picture_has_a_panel_a_batch_and_a_colour_an_attention():
    costs = [cost('plain', 1), cost('SE', 2), cost('ASR(SE)', 1), cost('CBAM', 4)]
    figure = draw_speed({8: costs, 16: costs}, ['SE', 'CBAM'], 'some network')
    assert [ax.get_title() for ax in figure.axes] == ['some network, batch 8', 'some network, batch 16']
    for ax, plain in zip(figure.axes, (40, 80), strict=True):  # images per second
        points = [(bar.lines[0].get_xydata().tolist(), bar.lines[0].get_color()) for bar in ax.containers]
        assert points == [([[plain, 2]], 'black'), ([[plain / 2, 4]], 'C0'), ([[plain, 2]], 'C0'), ([[plain / 4, 8]], 'C1')]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['plain', 'κ', 'ASR(κ)', 'κ = SE', 'κ = CBAM']


@pytest.fixture
def small(tmp_path):
    """The config of a small classifier."""
    (tmp_path / 'config.py').write_text("""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', backbone=dict(type='ResNet', depth=18, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=128, loss=dict(type='CrossEntropyLoss')))
""")
    return tmp_path / 'config.py'


def test_the_tool_writes_what_it_measured(small, tmp_path):
    options = ['--attention', 'SE', 'CBAM', '--delta', 1, 2, '--batch', 2, 3, '--size', 32, 64, '--rounds', 1, '--threads', 1]
    files = ['--out', 'a.json', '--picture', 'a.png']
    result = run_tool('benchmark.py', small, *options, '--channels-last', *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / 'a.json').read_text())
    assert stored['machine']['torch'] == torch.__version__
    assert stored['settings'] | {'threads': 1, 'size': [32, 64], 'processes': 1} == stored['settings']
    for batch in '23':
        costs = {cost['name']: cost for cost in stored['batches'][batch]}
        assert list(costs) == [
            'plain',
            'SE',
            'ASR(SE), δ = 1',
            "ASR(SE), δ = 1, the paper's form",
            'ASR(SE), δ = 2',
            "ASR(SE), δ = 2, the paper's form",
            'ASR(SE), deployed',
            'ASR(SE) + SE',
            'CBAM',
        ]
        assert all(len(cost['training']) == len(cost['inference']) == 1 for cost in costs.values())
        plain = costs['plain']
        assert costs['ASR(SE), deployed']['parameters'] == plain['parameters']
        assert costs['ASR(SE), deployed']['training_bytes'] == plain['training_bytes']
        assert costs['ASR(SE), δ = 2']['parameters'] > costs['ASR(SE), δ = 1']['parameters'] > plain['parameters']
        # Both multiply the feature map, which is kept for that.
        assert costs['SE']['training_bytes'] > 1.05 * costs['ASR(SE), δ = 1']['training_bytes']
        for name in costs:
            assert name in result.stdout
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_the_tool_measures_convolutions_and_no_attention_beside_them(small, tmp_path):
    options = ['--convs', 'OREPA', 'OfflineOREPA', 'DBB', '--batch', 2, '--size', 64, '--rounds', 1, '--out', 'a.json']
    result = run_tool('benchmark.py', small, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    costs = {cost['name']: cost for cost in json.loads((tmp_path / 'a.json').read_text())['batches']['2']}
    assert not any('SE' in name for name in costs)
    plain, kernels = costs['plain'], 4 * costs['plain']['parameters']
    for kind in ('OREPA', 'OfflineOREPA', 'DBB'):
        deployed = costs[f'{kind}, deployed']
        assert deployed['multiply_adds'] == plain['multiply_adds']
        assert deployed['training_bytes'] == plain['training_bytes']
    more = {name: cost['training_bytes'] - plain['training_bytes'] for name, cost in costs.items()}
    # The squeezed kernels, whatever the images, and the frequency prior, 27 numbers a channel: 3 / 128 where it is wide.
    assert 0 < more['OREPA'] <= 1.05 * kernels < more["OREPA, the authors' form"]


def test_the_tool_measures_images_of_several_sides_and_draws_how_cost_grows(tmp_path):
    options = ['--convs', 'XVolution', 'XVolution,branch=sa', '--batch', 2, '--sides', 64, 128, '--rounds', 1]
    options += ['--model', 'torchvision:resnet18', '--layer', 'layer3']
    result = run_tool('benchmark.py', *options, '--out', 'a.json', '--picture', 'a.png', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sides = json.loads((tmp_path / 'a.json').read_text())['sides']
    assert list(sides) == ['64', '128']
    plain, trained, deployed, *_ = sides['128']
    assert [trained['name'], deployed['name']] == ['XVolution', 'XVolution, deployed']
    assert plain['training_bytes'] < deployed['training_bytes'] < trained['training_bytes']  # without the BatchNorms
    assert 'torchvision:resnet18, layer3, map 2 x 128 x 16 x 16' in result.stdout
    assert plain['parameters'] == sum(p.numel() for p in torchvision.models.resnet18().layer3.parameters())
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_the_picture_shows_what_there_is_beyond_plain():
    def cost(name, seconds, size):
        return Cost(name, 1, 1, seconds, [1, 1, 1], None, seconds, [1, 1, 1], size)

    results = {
        side: [
            cost('plain', [1, 1.2], 2**20),
            cost('A', [9, 9], 2**20 + side * 2**20),
            cost('A, deployed', [1 + side / 1e3, 1.2 + side / 1e3], 0),
            cost('B', [1 + side / 1e2, 1.2 + side / 1e2], 3 * 2**20),
        ]
        for side in (128, 64)
    }
    time, memory = draw_growth(results, 2, 'title').axes
    lines = {line.get_label(): line for line in time.lines}
    assert list(lines) == ['A', 'B', 'linear in the number of positions', 'quadratic in the number of positions']
    assert lines['A'].get_xdata().tolist() == [64, 128]
    assert lines['A'].get_ydata() == pytest.approx([32, 64])  # deployed; milliseconds an image
    assert lines['B'].get_ydata() == pytest.approx([320, 640])  # there is no other form
    assert memory.lines[0].get_ydata() == pytest.approx([32, 64])
    for ax in (time, memory):
        linear, quadratic = (line.get_ydata() for line in ax.lines[-2:])
        assert (linear[1] / linear[0], quadratic[1] / quadratic[0]) == pytest.approx((4, 16))


@pytest.mark.parametrize('part', ['whole', 'backbone'])
def test_the_tool_measures_a_config(part, tmp_path):
    options = ['--part', part, '--attention', 'ECA', '--batch', 1, '--size', 64, '--rounds', 1, '--out', 'a.json']
    result = run_tool('benchmark.py', SHAPES_CONFIG, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plain, *_, deployed, _ = json.loads((tmp_path / 'a.json').read_text())['batches']['1']
    assert deployed['parameters'] == plain['parameters']  # the config's own ASR is not part of the plain network
    assert deployed['multiply_adds'] == plain['multiply_adds']


def test_the_tool_measures_a_classifier_with_amp(small, tmp_path):
    result = run_tool('benchmark.py', small, '--batch', 2, '--size', 32, '--rounds', 1, '--amp', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'ASR(SE), deployed' in result.stdout


def test_the_tool_measures_training_in_two_processes(tmp_path):
    tool = [
        ROOT / 'tools/benchmark.py',
        '--model',
        'torchvision:resnet18',
        '--layer',
        'layer1',
        '--batch',
        '2',
        '--rounds',
        '1',
    ]
    tool += ['--size', '32']
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', *tool, '--threads', '1']
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('| plain') == 2  # one process prints two tables
    assert 'processes 2' in result.stdout


BUT_TORCH = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'rich', 'matplotlib', 'timm', 'pycocotools', 'tqdm')


@pytest.mark.parametrize(
    ('options', 'status', 'text'),
    [
        (['--model', 'torchvision:resnet18'], 0, 'ASR(SE), deployed'),
        (['--model', 'torchvision:resnet18', '--picture', 'a.png'], 1, '--picture needs matplotlib'),
        ([SHAPES_CONFIG], 1, 'a config needs OpenMMLab'),
    ],
)
def test_the_tool_needs_torch_and_torchvision_alone(options, status, text, tmp_path):
    size = ['--size', 32, '--batch', 2, '--rounds', 1]
    result = run_python(ROOT / 'tools/benchmark.py', *options, *size, cwd=tmp_path, without=BUT_TORCH)
    assert result.returncode == status, result.stderr
    assert text in result.stdout + result.stderr


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--model', 'torchvision:resnet18', '--attention', 'XX'], '--attention XX: unknown; known are CBAM, ECA'),
        (['--model', 'torchvision:resnet18', '--convs', 'XX'], '--convs XX: unknown; known are ACNet, DBB'),
        (
            ['--model', 'torchvision:resnet18', '--convs', 'XVolution,branch'],
            '--convs XVolution,branch: branch is not an option',
        ),
        (['--model', 'torchvision:resnet18', '--sides', '32', '64', '--batch', '1', '2'], '--sides goes with one --batch'),
        (['--model', 'torchvision:resnet18', '--layer', 'layer9'], "ResNet has no layer 'layer9' that it gives one map to"),
        (['small.py', '--layer', 'layer3'], '--layer goes with --model or --part backbone'),
        (['--model', 'torchvision:resnet18', '--convs', 'DBB', '--picture', 'a.png'], '--picture draws attention'),
        (['--model', 'torchvision:vit_b_16', '--convs', 'ACNet'], 'VisionTransformer has no 3 x 3 convolution'),
        (['--model', 'torchvision:vgg11'], 'torchvision:vgg11: no site for attention found in VGG'),
        (['--model', 'torchvision:nope'], 'torchvision has no such classifier'),
        (['--model', 'timm:resnet18'], 'only torchvision:NAME is known'),
        (['--model', 'torchvision:resnet18', '--device', 'cuda'], 'torch finds no GPU here'),
        (['--model', 'torchvision:resnet18', '--out', 'no/a.json'], "can't write into no"),
        (['--model', 'torchvision:resnet18', '--out', 'empty.py'], 'empty.py: is there already'),
        (['--model', 'torchvision:resnet18', '--size', '1', '2', '3'], '--size takes a side, or height and width, not 3'),
        (['none.py'], 'none.py: no such config'),
        (['unknown.py'], 'unknown.py does not build: KeyError'),
        (['empty.py'], 'empty.py: has no model'),
        (['--model', 'torchvision:resnet18', '--batch', '1', '--size', '32'], 'Expected more than 1 value per channel'),
        (['small.py'], 'small.py, whole: ResNet does not run on images of (8, 3, 224, 224)'),
    ],
)
def test_the_tool_says_what_is_wrong(args, message, tmp_path, monkeypatch):
    (tmp_path / 'unknown.py').write_text("model = dict(type='Unknown')")
    (tmp_path / 'empty.py').write_text('a = 1')
    (tmp_path / 'small.py').write_text("model = dict(type='mmdet.ResNet', depth=18, in_channels=1)")
    if 'cuda' in args and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
    with pytest.raises(SystemExit, match=re.escape(message)):
        runpy.run_path(str(ROOT / 'tools/benchmark.py'), run_name='__main__')


def test_a_network_is_measured_as_it_trains():
    """Without ASR, with the branches that it merges when it is deployed."""
    network = config_model(ROOT / 'configs/cifar100/repvgg_a0_asr_se.py', 'backbone')
    assert not any(isinstance(module, Host | ASR) for module in network.modules())
    assert network.state_dict().keys() == RepVGG('A0', strides=(1, 2, 2, 2)).state_dict().keys()
