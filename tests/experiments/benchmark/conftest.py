import pytest

from mmasr.experiments.benchmark.measure import Cost


@pytest.fixture
def make_cost():
    """Return a function that makes the cost of a network, relative to a plain network with factor 1."""

    def make(name: str, factor: float, on_gpu: bool = False) -> Cost:
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

    return make
