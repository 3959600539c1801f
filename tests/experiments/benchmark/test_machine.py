"""The description of the machine."""

import platform

import torch

from mmasr.experiments.benchmark.machine import describe_machine


def test_it_names_processor_system_and_versions():
    found = describe_machine(torch.device('cpu'))
    assert found['torch'] == torch.__version__
    assert found['python'] == platform.python_version()
    assert {'processor', 'cores', 'system'} <= found.keys()
    assert 'gpu' not in found
