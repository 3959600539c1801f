"""Observing a network while it runs: counting images, several processes, and unusable values."""

import numpy as np
import pytest
import torch
from forked import run_ranks
from torch import nn

import mmasr
from mmasr.errors import InputError
from mmasr.stripes import Observer
from mmasr.stripes.observer import ROWS


class FirstModuleOnly(nn.Sequential):
    def forward(self, x):
        return self[0](x)


@pytest.fixture
def two_modules():
    """Return a network with two attention modules, of which only the first one runs."""
    return FirstModuleOnly(mmasr.SE(8), mmasr.ECA(8))


def test_no_image_is_rejected(two_modules):
    with Observer(two_modules) as observer:
        pass
    with pytest.raises(InputError, match='none of the attention modules ran: 0, 1'):
        observer.check()


def test_a_single_image_is_rejected(two_modules):
    with Observer(two_modules) as observer:
        two_modules(torch.randn(1, 8, 4, 4))
    with pytest.raises(InputError, match='a standard deviation needs at least two images'):
        observer.check()


def test_an_observer_can_be_reentered_and_reports_modules_that_did_not_run(two_modules):
    with Observer(two_modules) as observer:
        two_modules(torch.randn(1, 8, 4, 4))
    with observer:
        two_modules(torch.randn(1, 8, 4, 4))
        two_modules(torch.randn(0, 8, 4, 4))  # a head without regions
    assert observer.check() == ['1']
    assert observer.stripes['0'].v.count == 2


def test_nan_in_the_input_is_rejected(two_modules):
    bad = torch.randn(2, 8, 4, 4)
    bad[1, 3] = torch.nan
    with (
        pytest.raises(InputError, match=r'0 \(SE\): NaN or Inf in the input; use an earlier checkpoint'),
        Observer(two_modules),
    ):
        two_modules(bad)


def test_nan_in_the_values_is_rejected(two_modules):
    nn.init.constant_(two_modules[0].fc2.bias, torch.nan)
    with pytest.raises(InputError, match=r'0 \(SE\): NaN or Inf in the values v'), Observer(two_modules):
        two_modules(torch.randn(2, 8, 4, 4))


def observe_every_second_image(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    from mmengine.dist import all_gather_object

    torch.manual_seed(0)
    network = nn.Sequential(mmasr.SE(8))
    x = torch.randn(7, 8, 4, 4)
    with Observer(network) as observer, torch.no_grad():
        network(x[rank::2])
    gathered = all_gather_object(observer.stripes)
    observer.stripes = {}
    observer.combine(gathered)
    with Observer(network) as whole, torch.no_grad():
        network(x)
    torch.save(
        [(o.stripes['0'].v.count, o.stripes['0'].to_dict()) for o in (observer, whole)], folder / f'{rank}.pt'
    )
    torch.distributed.destroy_process_group()


def test_two_processes_together_observe_the_same_as_one(tmp_path):
    run_ranks(observe_every_second_image, tmp_path)
    results = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in (0, 1)]
    for (count, combined), (expected_count, expected) in results:
        assert count == expected_count == 7
        for part in ('v', 'pooled_input'):
            for key in ('mean', 'std', 'min', 'max'):
                assert combined[part][key] == pytest.approx(expected[part][key], rel=1e-9, abs=1e-12)


def test_the_summary_of_a_small_example(make_stripes):
    stripes = make_stripes('a', [[0.1, 0.5, 0.2], [0.1, 0.7, 0.24], [0.1, 0.6, 0.28]])
    std = np.std([0.5, 0.6, 0.7]), np.std([0.20, 0.24, 0.28])
    found = stripes.summary()
    assert found['median_std'] == pytest.approx(std[1])
    assert found['steady_share'] == pytest.approx(2 / 3)  # 0 and 0.033 are below 0.05, 0.082 is not
    between, within = np.var([0.1, 0.6, 0.24]), np.mean([0, std[0] ** 2, std[1] ** 2])
    assert found['between_channels'] == pytest.approx(between / (between + within))
    assert stripes.to_dict()['v']['max'] == [0.1, 0.7, 0.28]


def test_the_number_of_stored_rows_is_limited(make_stripes):
    one, two = (make_stripes('a', torch.rand(40, 3)) for _ in range(2))
    assert torch.equal(one.combined(two).rows, torch.cat([one.rows, two.rows[:, : ROWS - 40]], dim=1))
    assert one.combined(two).v.count == 80
