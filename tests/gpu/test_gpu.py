"""GPU behavior: mixed precision, SyncBatchNorm, streams, graphs, compiled training, and the tools."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSIFIER, ROOT, randomize
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from PIL import Image
from torch import nn

import mmasr
from mmasr.core.batched import disable_batching
from mmasr.core.host import Host
from mmasr.stripes import Observer
from mmasr.untrusted.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no GPU')
GPU = 'cuda'


def plain():
    def block(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    return nn.Sequential(
        block(3, 32), block(32, 32), block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    )


def network(*kinds):
    """Return a network on the GPU, with ASR(SE) at its normalizations, OREPA at its convolutions, or both."""
    model = randomize(plain()).to(GPU)
    for kind in kinds:
        mmasr.attach(model, {'type': kind}, sites=r'\d\.1' if kind == 'SE' else r'\d\.0')
    return model


def images(count=8, dtype=torch.float):
    return torch.randn(count, 3, 24, 24, device=GPU, dtype=dtype)


def gradients(model, x):
    model.zero_grad()
    output = model(x)
    output.square().mean().backward()
    return {'': output.detach(), **{name: p.grad for name, p in model.named_parameters()}}


KINDS = [('SE',), ('OREPA',), ('SE', 'OREPA')]


@pytest.mark.parametrize('kinds', KINDS)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_a_gpu_computes_the_same_as_a_cpu_and_folding_changes_nothing(kinds, layout):
    model = network(*kinds).to(memory_format=layout)
    assert {p.device.type for p in model.parameters()} == {GPU}
    double, x = copy.deepcopy(model).double(), images(dtype=torch.double)
    # Double precision excludes kernels of lower precision. A GPU adds up sums in another order.
    expected = gradients(copy.deepcopy(double).cpu(), x.cpu())
    found = {name: value.cpu() for name, value in gradients(double, x).items()}
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)

    model.eval()
    with torch.no_grad():
        ran = model(x.float())
        assert torch.equal(mmasr.fold(model)(x.float()), ran)


@pytest.mark.parametrize('kinds', KINDS)
def test_training_with_mixed_precision_and_a_loss_scaler(kinds):
    model, x = network(*kinds), images()
    start = copy.deepcopy(model.state_dict())
    wrapper = AmpOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), 1e-3), loss_scale='dynamic', dtype='float16'
    )
    for _ in range(10):  # in the first steps the scaler finds its scale
        with wrapper.optim_context(model):
            output = model(x)
        assert output.dtype == torch.float16
        wrapper.update_params(output.float().square().mean())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for name, p in model.named_parameters():
        if '.asr.' in name or '.orepa.' in name:
            assert not torch.equal(p, start[name]), name
    model.eval()
    folded = mmasr.fold(copy.deepcopy(model))
    with torch.no_grad(), torch.autocast(GPU, torch.float16):
        assert torch.equal(folded(x), model(x))


@pytest.fixture(scope='module')
def process_group(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp('group') / 'store'), 1)
    torch.distributed.init_process_group('nccl', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_hosts_survive_the_conversion_to_sync_batch_norm_and_back(process_group):
    model, x = network('SE').double(), images(dtype=torch.double)
    expected = gradients(copy.deepcopy(model), x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) and isinstance(m, Host) for m in synced.modules()) == 3
    torch.testing.assert_close(gradients(synced, x), expected, rtol=1e-8, atol=1e-8)
    back = revert_sync_batchnorm(synced).train()
    assert sum(isinstance(m, Host) for m in back.modules()) == 3
    torch.testing.assert_close(gradients(back, x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.skipif(torch.__version__ < '2.12', reason='torch can compile a host since 2.12')
@pytest.mark.parametrize('kinds', KINDS)
def test_compiled_training_has_the_same_gradients(kinds):
    model, x = network(*kinds).double(), images(dtype=torch.double)
    expected = gradients(copy.deepcopy(model), x)
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True)
    torch.testing.assert_close(gradients(compiled, x), expected, rtol=1e-8, atol=1e-8)


def test_the_eval_cache_follows_the_weights_in_every_stream():
    model, x = network('SE').eval(), images()
    side = torch.cuda.Stream()

    def expected():
        return mmasr.fold(copy.deepcopy(model))(x)

    with torch.no_grad():
        for _ in range(3):
            randomize(model)
            before = expected()
            assert torch.equal(model(x), before)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                there = model(x)
            torch.cuda.current_stream().wait_stream(side)
            assert torch.equal(there, before)


def test_a_captured_graph_uses_the_weights_at_its_replay():
    model, x = network('SE', 'OREPA').eval(), images()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            model(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x)
        randomize(model)
        graph.replay()
        # Outside of a graph, torch may choose other kernels.
        torch.testing.assert_close(output, mmasr.fold(copy.deepcopy(model))(x), rtol=1e-3, atol=1e-3)


def test_a_branch_in_another_stream_computes_its_own_effective_parameters():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = plain()[:3], plain()[:3]
            self.side = torch.cuda.Stream()

        def forward(self, x):
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                first = self.first(x)
            second = self.second(x)
            torch.cuda.current_stream().wait_stream(self.side)
            return first + second

    model, unbatched = (
        mmasr.attach(Branches().to(GPU).double(), {'type': 'SE'}, sites=r'\w+\.\d\.1') for _ in range(2)
    )
    unbatched.load_state_dict(randomize(model).state_dict())
    disable_batching(unbatched)
    x = images(dtype=torch.double)
    for _ in range(10):
        torch.testing.assert_close(gradients(model, x), gradients(unbatched, x), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with eight images in two classes, and the configs of two classifiers."""
    folder, generator = tmp_path_factory.mktemp('gpu'), np.random.default_rng(0)
    for name in range(8):
        path = folder / 'data' / 'ab'[name % 2] / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    text = CLASSIFIER.replace('data/shapes', 'data')
    (folder / 'asr.py').write_text(text)
    attention = "plugins=[dict(cfg=dict(type='mmasr.SE'), position='after_conv2')]"
    (folder / 'se.py').write_text(text.replace("asr=dict(attention=dict(type='SE'))", attention))
    return folder


def run(folder, *command):
    result = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def run_tool(folder, name, *arguments):
    return run(folder, sys.executable, ROOT / 'tools' / name, *arguments)


@pytest.fixture(scope='module')
def trained(folder):
    """Return a checkpoint of tools/dist_train.sh with one process, mixed precision and SyncBatchNorm."""
    settings = ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper', 'sync_bn=torch']
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('PYTHON', sys.executable)
        run(folder, ROOT / 'tools/dist_train.sh', 'asr.py', 1, *settings)
    return folder / 'work_dirs/asr/epoch_1.pth'


@pytest.mark.xdist_group('trained on a GPU')
def test_a_checkpoint_from_a_gpu_is_deployed_and_resumed(trained, folder):
    run_tool(folder, 'reparam.py', trained)
    deployed = [folder / f'work_dirs/asr/epoch_1_deploy.{suffix}' for suffix in ('py', 'pth')]
    assert 'accuracy' in run_tool(folder, 'test.py', *deployed)
    found = run_tool(folder, 'train.py', 'asr.py', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert 'Epoch(train) [2]' in found


@pytest.mark.xdist_group('trained on a GPU')
def test_a_checkpoint_with_tensors_on_a_gpu_is_read_to_the_cpu(trained, folder):
    checkpoint = torch.load(trained, weights_only=False)
    state = {name: value.cuda() for name, value in checkpoint['state_dict'].items()}
    moved = trained.with_name('moved.pth')
    torch.save({'meta': {'cfg': checkpoint['meta']['cfg']}, 'state_dict': state}, moved)
    read = read_checkpoint(moved)['state_dict']
    assert {value.device.type for value in read.values()} == {'cpu'}
    torch.testing.assert_close(read, {name: value.cpu() for name, value in state.items()}, rtol=0, atol=0)
    run_tool(folder, 'reparam.py', moved)
    deployed = [
        torch.load(trained.with_name(f'{name}_deploy.pth'))['state_dict'] for name in ('epoch_1', 'moved')
    ]
    torch.testing.assert_close(*deployed, rtol=0, atol=0)


def test_the_stripes_are_the_same_as_on_a_cpu():
    model = mmasr.attach(plain(), {'type': 'SE'}, sites=r'.*\.1')
    model[0].append(mmasr.SE(32))
    randomize(model).eval()
    seen = []
    for device in ('cpu', GPU):
        copied = copy.deepcopy(model).to(device).double()
        with Observer(copied) as observer, torch.no_grad():
            copied(torch.ones(4, 3, 24, 24, dtype=torch.double).cumsum(0).cumsum(2).to(device))
        seen.append([stripes.summary() for stripes in observer.stripes.values()])
    assert len(seen[0]) == 1
    for cpu, gpu in zip(*seen, strict=True):
        assert cpu == pytest.approx(gpu, rel=1e-6, abs=1e-9)


def test_the_stripe_hook_and_the_stripes_tool_run(folder):
    config = Config.fromfile(folder / 'se.py')
    config.merge_from_dict(
        {'work_dir': str(folder / 'work_dirs/se'), 'custom_hooks': [{'type': 'mmasr.StripeHook'}]}
    )
    config.merge_from_dict({'experiment_name': 'gpu', 'train_cfg.max_epochs': 2})
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        runner = Runner.from_cfg(config)
        runner.train()
    assert next(runner.model.parameters()).is_cuda
    assert Path(folder, 'work_dirs/se/stripes_changes.png').exists()
    found = run_tool(folder, 'stripes.py', 'se.py', 'work_dirs/se/epoch_2.pth')
    assert 'backbone.layer1.0.se' in found
