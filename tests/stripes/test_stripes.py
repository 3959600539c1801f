"""The Stripe Observation: figures on hand-made values, on attention of four libraries, and as pages."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from forked import run_ranks
from helpers import randomize, run_tool
from mmdet.models.layers import SELayer as DetSELayer
from mmpretrain.models import MobileNetV3, SEResNet
from mmpretrain.models.utils import SELayer as PretrainSELayer
from torch import nn

import mmasr
from mmasr.attention import ATTENTIONS
from mmasr.errors import InputError
from mmasr.stripes import VALUES, ChannelStatistics, Observer, Stripes, attention_modules
from mmasr.stripes.figures import choose, draw_changes, draw_deviations, draw_stripes
from mmasr.stripes.observer import ROWS
from mmasr.stripes.report import FILES, write_report


def statistics(values):
    return ChannelStatistics.of(torch.tensor(values))


class TestStatistics:
    def test_by_hand(self):
        found = statistics([[1.0, 5.0], [3.0, 5.0], [2.0, 8.0]])
        assert found.count == 3
        assert found.mean.tolist() == [2, 6]
        assert found.std.tolist() == pytest.approx([(2 / 3) ** 0.5, 2**0.5])
        assert (found.minimum.tolist(), found.maximum.tolist()) == ([1, 5], [3, 8])
        # Between: the means 2 and 6 have the variance 4; within: (2/3 + 2) / 2 = 4/3.
        assert found.between_channels == pytest.approx(4 / (4 + 4 / 3))

    @pytest.mark.parametrize(
        ('values', 'share'),
        [([[0.2, 0.9]] * 4, 1), ([[0.0, 0.0], [1.0, 1.0]], 0), ([[0.5, 0.5]] * 2, 1)],
        ids=['perfect stripes', 'no stripes', 'all the same'],
    )
    def test_between_channels_at_its_ends(self, values, share):
        assert statistics(values).between_channels == share

    @pytest.mark.parametrize('count', [1, 100_000])
    def test_streamed_is_exact(self, count):
        """Against the two-pass formula in double precision; the offset of 1000 would cancel in sums of squares."""
        values = torch.rand(count, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 10.0]) + torch.tensor([1000.0, 0.0, -5.0])
        streamed = None
        for start in range(0, count, 7):  # in batches, the last one smaller
            batch = ChannelStatistics.of(values[start : start + 7])
            streamed = streamed.merged(batch) if streamed else batch
        assert streamed.count == count
        for found, expected in (
            (streamed.mean, values.mean(dim=0)),
            (streamed.std, values.std(dim=0, correction=0)),
            (streamed.minimum, values.amin(dim=0)),
            (streamed.maximum, values.amax(dim=0)),
        ):
            # A deviation of 3e-4 about 1000 has ten digits fewer than double precision's sixteen; 1e5 roundings add up at most.
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)

    @pytest.mark.parametrize('cut', [1, 5, 9])
    def test_merging_is_the_same_from_both_sides(self, cut):
        values = torch.rand(10, 4)
        whole = ChannelStatistics.of(values)
        parts = ChannelStatistics.of(values[:cut]), ChannelStatistics.of(values[cut:])
        for merged in (parts[0].merged(parts[1]), parts[1].merged(parts[0])):
            torch.testing.assert_close(merged.std, whole.std, rtol=1e-12, atol=0)


def kappa(name):
    return lambda: ATTENTIONS[name](16)


MODULES = {
    **{name: (kappa(name), lambda m, x: m.weights(x)) for name in ATTENTIONS},
    'mmdet SELayer': (lambda: DetSELayer(16, 4), lambda m, x: m.conv2(m.conv1(x.mean((2, 3), keepdim=True)))),
    'mmpretrain SELayer': (lambda: PretrainSELayer(16, ratio=4), lambda m, x: m.conv2(m.conv1(x.mean((2, 3), keepdim=True)))),
    'timm SE': (
        lambda: timm.layers.SEModule(16, rd_channels=4, add_maxpool=True),
        lambda m, x: m.fc2(m.fc1((x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)) / 2).relu()).sigmoid(),
    ),
    'timm ECA': (
        lambda: timm.layers.EcaModule(16),
        lambda m, x: m.conv(x.mean((2, 3))[:, None]).sigmoid(),
    ),
}


@pytest.mark.parametrize('kind', MODULES)
def test_values_of_every_kind(kind):
    make, values = MODULES[kind]
    module = randomize(make()).eval()
    network = nn.Sequential(nn.Conv2d(3, 16, 1), module)
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        with Observer(network) as observer:
            output = network(x)
            network(x[:2])
        assert torch.equal(network(x), output)  # watching changes nothing, and nothing is seen afterwards
        features = network[0](x)
        v = values(module, features).reshape(5, 16)
    (stripes,) = observer.stripes.values()
    seen = torch.cat([v, v[:2]]).double()
    assert stripes.v.count == 7
    assert stripes.spatial == (kind == 'CBAM')
    torch.testing.assert_close(stripes.v.mean, seen.mean(dim=0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stripes.v.std, seen.std(dim=0, correction=0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(stripes.rows[1], seen, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(stripes.rows[0][:5], features.mean((2, 3)).double(), rtol=1e-5, atol=1e-6)
    if kind != 'CBAM':  # what was read is what the module multiplied by
        torch.testing.assert_close(output, features * v[..., None, None])


NETWORKS = {
    'mmpretrain SEResNet': (lambda: SEResNet(50, base_channels=8, stem_channels=8), 16),
    'mmpretrain MobileNetV3': (lambda: MobileNetV3('small'), 9),
    'timm seresnet18': (lambda: timm.create_model('seresnet18'), 8),
    'timm ecaresnet26t': (lambda: timm.create_model('ecaresnet26t'), 8),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_attention_in_the_libraries_networks(name):
    make, count = NETWORKS[name]
    assert len(attention_modules(make())) == count


def test_modules_come_in_the_networks_order_and_by_its_names():
    seresnet = SEResNet(50, base_channels=8, stem_channels=8)
    assert list(attention_modules(seresnet))[:2] == ['layer1.0.se_layer', 'layer1.1.se_layer']


def test_attention_inside_an_asr_is_left_out_since_it_sees_no_image():
    asr = mmasr.attach(timm.create_model('seresnet18'), {'type': 'SE'})
    assert list(attention_modules(asr)) == [f'layer{i}.{j}.se' for i in (1, 2, 3, 4) for j in (0, 1)]


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))


class SpatialAttention(OwnAttention):
    def forward(self, x):
        return x * self.gate(x.mean(1, keepdim=True))


def test_an_unknown_module_of_ones_own_is_refused():
    with pytest.raises(InputError, match='Sequential has no attention that depends on its input; known are'):
        Observer(nn.Sequential(nn.Conv2d(3, 4, 1), OwnAttention()))


@pytest.fixture
def _known(monkeypatch):
    monkeypatch.setitem(VALUES, f'{OwnAttention.__module__}.OwnAttention', 'gate')


@pytest.mark.usefixtures('_known')
def test_a_module_of_ones_own_is_one_line():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), OwnAttention())
    x = torch.randn(3, 3, 5, 5)
    with Observer(network) as observer:
        network(x)
    expected = network[0](x).mean((2, 3)).sigmoid().double()
    torch.testing.assert_close(observer.stripes['1'].rows[1], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures('_known')
@pytest.mark.parametrize('size', [5, 2], ids=['5', '2, as many positions as channels'])
def test_values_that_are_not_one_a_channel_are_refused(size):
    spatial = SpatialAttention()
    shape = rf'\(3, 1, {size}, {size}\) for an input of \(3, 4, {size}, {size}\)'
    observer = Observer(nn.Sequential(spatial))
    with pytest.raises(InputError, match=rf'^0 \(SpatialAttention\): its values are {shape}'), observer:
        spatial(torch.randn(3, 4, size, size))


class TwoHeads(nn.Sequential):
    def forward(self, x):
        return self[0](x)


@pytest.fixture
def two_heads():
    """Two attention modules, of which the first one runs."""
    return TwoHeads(mmasr.SE(8), mmasr.ECA(8))


def test_no_image_is_refused(two_heads):
    with Observer(two_heads) as observer:
        pass
    with pytest.raises(InputError, match='none of the attention modules ran: 0, 1'):
        observer.check()


def test_one_image_is_refused(two_heads):
    with Observer(two_heads) as observer:
        two_heads(torch.randn(1, 8, 4, 4))
    with pytest.raises(InputError, match='one image has no deviation'):
        observer.check()


def test_an_observer_goes_on_counting_and_names_what_did_not_run(two_heads):
    with Observer(two_heads) as observer:
        two_heads(torch.randn(1, 8, 4, 4))
    with observer:
        two_heads(torch.randn(1, 8, 4, 4))
        two_heads(torch.randn(0, 8, 4, 4))  # a head that got no regions
    assert observer.check() == ['1']
    assert observer.stripes['0'].v.count == 2


def test_nan_in_the_input_is_refused(two_heads):
    bad = torch.randn(2, 8, 4, 4)
    bad[1, 3] = torch.nan
    with pytest.raises(InputError, match=r'0 \(SE\): NaN or Inf in the input; take an earlier checkpoint'), Observer(two_heads):
        two_heads(bad)


def test_nan_in_the_values_is_refused(two_heads):
    nn.init.constant_(two_heads[0].fc2.bias, torch.nan)
    with pytest.raises(InputError, match=r'0 \(SE\): NaN or Inf in the values v'), Observer(two_heads):
        two_heads(torch.randn(2, 8, 4, 4))


def share(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    from mmengine.dist import all_gather_object

    torch.manual_seed(0)
    network = nn.Sequential(mmasr.SE(8))
    x = torch.randn(7, 8, 4, 4)
    with Observer(network) as observer, torch.no_grad():
        network(x[rank::2])
    shares = all_gather_object(observer.stripes)
    observer.stripes = {}
    observer.merge(shares)
    with Observer(network) as whole, torch.no_grad():
        network(x)
    torch.save([(o.stripes['0'].v.count, o.stripes['0'].to_dict()) for o in (observer, whole)], folder / f'{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_ranks_together_have_seen_what_one_sees(tmp_path):
    run_ranks(share, tmp_path)
    results = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in (0, 1)]
    for (count, merged), (expected_count, expected) in results:
        assert count == expected_count == 7
        for part in ('v', 'pooled_input'):
            for figure in ('mean', 'std', 'min', 'max'):
                assert merged[part][figure] == pytest.approx(expected[part][figure], rel=1e-9, abs=1e-12)


def made(name, v, pooled=None):
    v = torch.as_tensor(v, dtype=torch.float64)
    pooled = v if pooled is None else pooled
    return Stripes(name, 'SE', ChannelStatistics.of(v), ChannelStatistics.of(pooled), torch.stack([pooled, v])[:, :ROWS], False)


def test_summary_by_hand():
    stripes = made('a', [[0.1, 0.5, 0.2], [0.1, 0.7, 0.24], [0.1, 0.6, 0.28]])
    std = np.std([0.5, 0.6, 0.7]), np.std([0.20, 0.24, 0.28])
    found = stripes.summary()
    assert found['median_std'] == pytest.approx(std[1])
    assert found['steady_share'] == pytest.approx(2 / 3)  # 0 and 0.033 are under 0.05, 0.082 is not
    between, within = np.var([0.1, 0.6, 0.24]), np.mean([0, std[0] ** 2, std[1] ** 2])
    assert found['between_channels'] == pytest.approx(between / (between + within))
    assert stripes.to_dict()['v']['max'] == [0.1, 0.7, 0.28]


def test_rows_for_the_pictures_do_not_grow():
    one, two = (made('a', torch.rand(40, 3)) for _ in range(2))
    assert torch.equal(one.merged(two).rows, torch.cat([one.rows, two.rows[:, : ROWS - 40]], dim=1))
    assert one.merged(two).v.count == 80


def test_stripes_are_drawn_as_they_are_on_one_scale():
    v, pooled = torch.rand(6, 5).double(), torch.randn(6, 5).double()
    figure = draw_stripes([made('first', v, pooled), made('second', v)])
    before, after = (ax.images[0] for ax in figure.axes[:2])
    assert np.array_equal(before.get_array(), pooled)
    assert np.array_equal(after.get_array(), v)
    assert before.get_clim() == after.get_clim()
    assert before.get_clim()[0] == pytest.approx(torch.cat([v, pooled]).quantile(0.01).item())


def test_deviations_are_drawn_in_per_cent():
    v, pooled = torch.rand(6, 5).double(), torch.randn(6, 5).double()
    figure = draw_deviations([made('a', v, pooled)])
    heights = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert heights == pytest.approx(200)  # per cent, before and after


def test_changes_are_drawn_as_a_line_a_channel():
    changes = torch.rand(4, 3, 20)
    figure = draw_changes({'a': changes}, [2, 3, 4, 5])
    assert np.array_equal(figure.axes[1].lines[7].get_ydata(), changes[:, 1, 7])
    assert figure.axes[1].lines[7].get_xdata().tolist() == [2, 3, 4, 5]
    assert figure.axes[0].get_ylim()[1] > changes.max()


@pytest.mark.parametrize('draw', [draw_stripes, draw_deviations])
def test_no_deviation_at_all_can_be_drawn(draw):
    draw([made('a', torch.ones(2, 3))]).canvas.draw()


def test_choose_takes_all_of_a_few():
    assert choose(list('abc')) == ['a', 'b', 'c']


def test_choose_takes_first_and_last():
    assert choose([str(i) for i in range(16)]) == ['0', '5', '10', '15']


SCRIPT = '<script>alert(1)</script>'


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The folder of a report on two modules, one with a name that is HTML, and the paths that were said to be written."""
    folder = tmp_path_factory.mktemp('report') / 'new'
    modules = [made(name, torch.rand(4, 3)) for name in (SCRIPT, 'b')]
    return folder, write_report(folder, modules, {'config': '<b>&.py'}, chosen=['b'])


def test_a_report_is_its_files_and_lists_its_modules(report):
    folder, paths = report
    assert [path.name for path in paths] == sorted(FILES, key=FILES.index)
    found = json.loads((folder / 'stripes.json').read_text())
    assert [m['name'] for m in found['modules']] == [SCRIPT, 'b']


def test_a_page_escapes_names(report):
    page = (report[0] / 'stripes.html').read_text()
    assert '<script>alert' not in page
    assert '&lt;script&gt;alert(1)' in page
    assert '&lt;b&gt;&amp;.py' in page


def test_a_page_needs_no_network(report):
    page = (report[0] / 'stripes.html').read_text()
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,)|https?://|@import', page)


def test_a_page_without_spatial_maps_does_not_speak_of_them(report):
    assert 'spatial map' not in (report[0] / 'stripes.html').read_text()


def test_a_page_says_what_is_left_out_of_a_spatial_map(tmp_path):
    cbam = dataclasses.replace(made('c', torch.rand(4, 3)), spatial=True)
    write_report(tmp_path / 'cbam', [cbam], {'config': 'x'}, chosen=['not run'])
    assert 'c: stripes are a matter of channels' in (tmp_path / 'cbam/stripes.html').read_text()


def test_a_page_that_cant_be_written_leaves_nothing(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match="can't write here"):
        write_report(tmp_path / 'file', [made('a', torch.rand(4, 3))], {'config': 'x'})
    assert (tmp_path / 'file').read_text() == ''


@pytest.fixture(scope='module')
def shapes_run(se_checkpoint, shapes):
    """The folder that the tool makes of the shapes run, and what it prints."""
    options = ['--out', 'stripes', '--modules', 'backbone.layer2.0.se']
    result = run_tool('stripes.py', *se_checkpoint, *options, cwd=shapes)
    assert result.returncode == 0, result.stderr
    return shapes / 'stripes', result.stdout


def test_the_tool_observes_every_module_on_every_image(shapes_run):
    folder, _ = shapes_run
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    found = json.loads((folder / 'stripes.json').read_text())
    assert found['about']['images'] == 4
    assert [m['name'] for m in found['modules']] == [f'backbone.layer{i}.{j}.se' for i in (1, 2, 3, 4) for j in (0, 1)]
    for m in found['modules']:
        assert m['images'] == 4
        assert len(m['v']['mean']) == m['channels']


def test_the_tool_prints_the_figures_of_its_page(shapes_run):
    folder, printed = shapes_run
    page = (folder / 'stripes.html').read_text()
    for m in json.loads((folder / 'stripes.json').read_text())['modules']:
        assert f'{m["median_std"]:.4f}' in page
        assert f'{m["median_std"]:.4f}' in printed


def test_a_detectors_page_refers_to_the_papers_figure_of_a_detector(shapes_run):
    assert 'Fig. 4' in (shapes_run[0] / 'stripes.html').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'stripes'], r'stripes/stripes\.json is there already; pass --force'),
        (['--out', 'other', '--images', '1'], 'there are no deviations in less than two images'),
        (['--out', 'other', '--modules', 'none'], '--modules none: no such attention module; there are backbone'),
        (['--out', 'other', '--cfg-options', 'test_dataloader.dataset.indices=1'], 'one image has no deviation'),
    ],
    ids=['files that are there', '--images 1', 'an unknown module', 'a data set of one image'],
)
@pytest.mark.usefixtures('shapes_run')
def test_the_tool_refuses_and_writes_nothing(se_checkpoint, shapes, refusal, arguments, message):
    assert re.search(message, refusal('stripes.py', *se_checkpoint, *arguments, cwd=shapes))
    assert not (shapes / 'other').exists()


def test_force_overwrites(se_checkpoint, shapes, shapes_run, tmp_path):
    out = shutil.copytree(shapes_run[0], tmp_path / 'stripes')
    result = run_tool('stripes.py', *se_checkpoint, '--out', out, '--force', '--images', '3', cwd=shapes)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / 'stripes.json').read_text())['about']['images'] == 3


def test_the_tool_without_attention(checkpoint, shapes, refusal):
    message = refusal('stripes.py', shapes / 'work/mask_rcnn_r18_asr_se.py', checkpoint, '--out', 'other', cwd=shapes)
    assert message.startswith('error: MaskRCNN has no attention that depends on its input')
