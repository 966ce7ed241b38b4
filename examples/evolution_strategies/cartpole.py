"""The policy, and the episodes of CartPole-v1 that it plays.

Guarantees: the same parameters and the same episode seeds give the same returns, in whichever
process. Holds one environment per process. Leaves learning to `learning.py`.
"""

import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from examples.evolution_strategies.noise import perturbation

LAYERS = (4, 16, 16, 1)
"""Observation, two hidden layers, and one output whose sign is the direction of the push."""

OBSERVATION_SCALE = 1 / np.array([2.4, 3.0, 0.21, 3.0])
"""Brings position, speed, angle and turning speed to about one at the edge of falling."""

PARAMETER_COUNT = sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(LAYERS))

LONGEST_EPISODE = 500
"""Steps, and thereby the highest return: one for each step without a fall."""

Parameters = NDArray[np.float64]


class Score(NamedTuple):
    """What a mirrored pair of policies achieved, and what that cost."""

    returns: tuple[float, float]
    """Mean return with the perturbation added, and with it subtracted."""
    steps: int
    seconds: float


class Policy:
    """A small perceptron, cut out of one flat vector of parameters."""

    def __init__(self, parameters: Parameters) -> None:
        layers = []
        start = 0
        for inputs, outputs in itertools.pairwise(LAYERS):
            middle = start + inputs * outputs
            end = middle + outputs
            layers.append(
                (parameters[start:middle].reshape(outputs, inputs), parameters[middle:end])
            )
            start = end
        *self._hidden, (output_weights, output_bias) = layers
        self._output_weights = output_weights[0]
        self._output_bias = output_bias[0]

    def action(self, observation: NDArray[np.float32]) -> int:
        """1 to push the cart right, 0 to push it left."""
        signal = observation * OBSERVATION_SCALE
        for weights, bias in self._hidden:
            signal = np.tanh(weights @ signal + bias)
        return int(self._output_weights @ signal + self._output_bias > 0)


def initial_parameters(seed: int) -> Parameters:
    """Random hidden layers that keep signals near one; an output layer of zeros has no opinion."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.standard_normal(inputs * outputs) / np.sqrt(inputs), np.zeros(outputs))
        for inputs, outputs in itertools.pairwise(LAYERS)
    ]
    layers[-1][0][:] = 0
    return np.concatenate([numbers for layer in layers for numbers in layer])


def play(parameters: Parameters, seeds: Sequence[int]) -> tuple[list[float], int]:
    """One episode for each seed: their returns, and the steps taken in all of them."""
    environment = _environment()
    policy = Policy(parameters)
    returns = []
    steps = 0
    for seed in seeds:
        observation, _ = environment.reset(seed=seed)
        total = 0.0
        over = False
        while not over:
            observation, reward, fallen, out_of_time, _ = environment.step(
                policy.action(observation)
            )
            over = fallen or out_of_time
            total += float(reward)
            steps += 1
        returns.append(total)
    return returns, steps


def play_mirrored(
    parameters: Parameters,
    table: NDArray[np.float32],
    start: int,
    sigma: float,
    seeds: Sequence[int],
) -> Score:
    """Play the same episodes with the parameters moved one way and then the other.

    Both sides meet the same starting states, so that luck cancels out of their difference.
    """
    began = time.perf_counter()
    shift = sigma * perturbation(table, start, parameters.size)
    plus, plus_steps = play(parameters + shift, seeds)
    minus, minus_steps = play(parameters - shift, seeds)
    return Score(
        returns=(float(np.mean(plus)), float(np.mean(minus))),
        steps=plus_steps + minus_steps,
        seconds=time.perf_counter() - began,
    )


@functools.cache
def _environment() -> gymnasium.Env[NDArray[np.float32], Any]:
    """This process's environment; making one costs as much as a hundred steps in it."""
    return gymnasium.make("CartPole-v1")
