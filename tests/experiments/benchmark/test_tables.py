"""Measurements as Markdown tables."""

import pytest

from mmasr.experiments.benchmark.tables import markdown_tables


@pytest.mark.parametrize('on_gpu', [False, True])
def test_the_tables_contain_the_measurements(on_gpu, make_cost):
    found = markdown_tables([make_cost('plain', 1, on_gpu), make_cost('SE', 2, on_gpu)], batch=8)
    memory = 'peak, MiB' if on_gpu else 'kept for backward, MiB'
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in found.splitlines()
        if '--' not in line
    ]
    head = ['inference', 'parameters, M', 'multiply-adds, G', 'ms', 'images/s', '÷ plain']
    assert cells == [
        [*head, *['peak, MiB'] * on_gpu],
        ['plain', '2.00', '3.000', '200.0', '40.0', '1.000 (0.50-2.00)', *['5.0'] * on_gpu],
        ['SE', '4.00', '3.000', '400.0', '20.0', '2.000 (1.00-4.00)', *['5.0'] * on_gpu],
        [''],
        ['training step', 'ms', '÷ plain', memory, '÷ plain'],
        ['plain', '400.0', '1.000 (1.00-1.00)', '1.0', '1.0000'],
        ['SE', '800.0', '2.000 (2.00-2.00)', '2.0', '2.0000'],
    ]
