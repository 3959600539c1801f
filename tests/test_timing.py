"""Functions that are timed in turns."""

import time

import torch

from mmasr.timing import ratio_quantiles, time_in_turns


def test_every_function_runs_once_per_round_in_a_random_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = time_in_turns(functions, range(20))
    assert calls[:6] == [*'aaabbb']  # the warm-up
    rounds = {tuple(calls[i : i + 2]) for i in range(6, len(calls), 2)}
    assert rounds == {('a', 'b'), ('b', 'a')}
    assert {name: len(times) for name, times in seconds.items()} == {'a': 20, 'b': 20}


def test_the_seconds_belong_to_their_function():
    seconds = time_in_turns({'short': lambda: None, 'long': lambda: time.sleep(0.02)}, range(3))
    assert (seconds['long'] >= 0.02).all()
    assert (ratio_quantiles(seconds['long'], seconds['short']) > 1).all()


def test_ratios_are_taken_within_a_round():
    reference = torch.tensor([1.0, 10.0, 2.0, 5.0], dtype=torch.double)
    found = ratio_quantiles(3 * reference, reference)
    torch.testing.assert_close(found, torch.full((3,), 3.0, dtype=torch.double))
