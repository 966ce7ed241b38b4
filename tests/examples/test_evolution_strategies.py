import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.evolution_strategies import cartpole, learning, noise, picture
from examples.evolution_strategies.__main__ import main
from examples.evolution_strategies.cartpole import PARAMETER_COUNT, Parameters, Score
from examples.evolution_strategies.learning import Adam, Generation, Settings
from examples.evolution_strategies.serial import Serial

SMALL = Settings(seed=3, population=8, episodes=2)


# Ranks


def test_ranks_run_from_minus_a_half_to_a_half_in_the_order_of_the_returns() -> None:
    ranks = learning.centered_ranks(np.array([[10.0, 500.0], [20.0, 9.0], [30.0, 40.0]]))

    np.testing.assert_allclose(ranks, np.array([[-0.3, 0.5], [-0.1, -0.5], [0.1, 0.3]]))


def test_equal_returns_share_their_mean_rank() -> None:
    ranks = learning.centered_ranks(np.array([[500.0, 7.0], [500.0, 500.0]]))

    np.testing.assert_allclose(ranks, np.array([[1 / 6, -0.5], [1 / 6, 1 / 6]]))


def test_when_all_returns_are_equal_there_is_nothing_to_learn() -> None:
    assert not learning.centered_ranks(np.full((4, 2), 500.0)).any()


def test_ranks_do_not_depend_on_the_scale_of_returns() -> None:
    returns = np.random.default_rng(1).normal(size=(16, 2))

    ranks = learning.centered_ranks(returns)

    np.testing.assert_array_equal(ranks, learning.centered_ranks(np.exp(3 * returns)))
    assert abs(ranks.sum()) < 1e-12


# Noise


def test_equal_seeds_make_equal_tables_and_draws() -> None:
    one, same, other = (noise.Noise(seed, 100) for seed in (5, 5, 6))

    np.testing.assert_array_equal(one.table()[:1000], same.table()[:1000])
    first, second = one.draw(8), one.draw(8)
    np.testing.assert_array_equal(first, same.draw(8))
    np.testing.assert_array_equal(second, same.draw(8))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.draw(8))


def test_every_draw_starts_a_slice_that_lies_within_the_table() -> None:
    whole = noise.Noise(0, noise.TABLE_SIZE)
    assert whole.draw(3).tolist() == [0, 0, 0]

    nearly_whole = noise.Noise(0, noise.TABLE_SIZE - 1)
    assert set(nearly_whole.draw(50).tolist()) == {0, 1}


def test_a_policy_larger_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit in the noise table"):
        noise.Noise(0, noise.TABLE_SIZE + 1)


def test_a_perturbation_is_a_view_of_the_table() -> None:
    table = np.arange(10, dtype=np.float32)
    table.flags.writeable = False  # as it is in shared memory

    piece = noise.perturbation(table, 3, 4)

    assert piece.tolist() == [3, 4, 5, 6]
    assert np.shares_memory(piece, table)


# Gradient and optimizer


def test_the_gradient_points_along_the_perturbation_whose_positive_side_did_better() -> None:
    table = np.zeros(2 * PARAMETER_COUNT, np.float32)
    table[5] = 1.0  # the first perturbation moves parameter 5, the second one nothing
    ranks = np.array([[0.5, -0.5], [0.0, 0.0]])

    direction = learning.gradient(table, [0, PARAMETER_COUNT], ranks, sigma=0.1)

    assert direction[5] > 0
    assert np.count_nonzero(direction) == 1


def test_adam_climbs_to_the_top_of_a_hill() -> None:
    top = np.array([1.0, -2.0])
    optimizer = Adam(np.zeros(2), learning_rate=0.05)
    start = optimizer.parameters

    for _ in range(300):
        optimizer.ascend(top - optimizer.parameters)

    np.testing.assert_allclose(optimizer.parameters, top, atol=0.02)
    assert not start.any(), "parameters that were given out must not change"


# Policy and episodes


def test_the_parameters_fill_the_policy_exactly() -> None:
    parameters = cartpole.initial_parameters(0)

    assert parameters.shape == (PARAMETER_COUNT,)
    assert cartpole.Policy(parameters).action(np.ones(4, np.float32)) in (0, 1)
    # The last parameter is the bias of the output: alone it decides, whatever is seen.
    parameters[-1] = 100.0
    assert cartpole.Policy(parameters).action(np.ones(4, np.float32)) == 1
    parameters[-1] = -100.0
    assert cartpole.Policy(parameters).action(np.ones(4, np.float32)) == 0


def test_episodes_depend_on_nothing_but_parameters_and_seeds() -> None:
    parameters = np.random.default_rng(2).normal(size=PARAMETER_COUNT)

    returns, steps = cartpole.play(parameters, [11, 12, 13])
    again, _ = cartpole.play(parameters, [13, 11])

    assert again == [returns[2], returns[0]]
    assert steps == sum(returns)  # CartPole pays one for each step


def test_a_mirrored_pair_is_both_sides_of_the_parameters() -> None:
    table = np.random.default_rng(4).standard_normal(2 * PARAMETER_COUNT, np.float32)
    parameters = cartpole.initial_parameters(4)
    shift = 0.5 * table[7 : 7 + PARAMETER_COUNT]

    score = cartpole.play_mirrored(parameters, table, 7, 0.5, [1, 2])

    plus, plus_steps = cartpole.play(parameters + shift, [1, 2])
    minus, minus_steps = cartpole.play(parameters - shift, [1, 2])
    assert score.returns == (float(np.mean(plus)), float(np.mean(minus)))
    assert score.steps == plus_steps + minus_steps


# A whole generation


def _first_generation(settings: Settings) -> Generation:
    return next(learning.train(settings, Serial(settings)))


def test_a_generation_is_a_function_of_the_seed() -> None:
    one, same = _first_generation(SMALL), _first_generation(SMALL)
    other = _first_generation(Settings(seed=4, population=8, episodes=2))

    np.testing.assert_array_equal(one.returns, same.returns)
    np.testing.assert_array_equal(one.parameters, same.parameters)
    assert one.steps == same.steps
    assert not np.array_equal(one.parameters, other.parameters)


class OutOfOrder(Serial):
    """Yields its scores in a random order, as a fleet of many processors does."""

    def rollouts(
        self, parameters: Parameters, starts: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        scores = list(super().rollouts(parameters, starts, seeds))
        random.Random(9).shuffle(scores)
        return iter(scores)


def test_the_order_in_which_scores_arrive_changes_nothing() -> None:
    in_order = list(islice(learning.train(SMALL, Serial(SMALL)), 3))
    shuffled = list(islice(learning.train(SMALL, OutOfOrder(SMALL)), 3))

    for one, other in zip(in_order, shuffled, strict=True):
        np.testing.assert_array_equal(one.returns, other.returns)
        np.testing.assert_array_equal(one.parameters, other.parameters)


def test_exams_are_fresh() -> None:
    trained = {s for g in range(1, 61) for s in learning.training_seeds(SMALL, g)}
    exams = [learning.exam_seeds(SMALL, g) for g in range(1, 61)]

    met = [seed for exam in exams for seed in exam]
    assert all(len(exam) == 20 for exam in exams)
    assert len(set(met)) == len(met)
    assert not trained & set(met)


class Scripted:
    """A fleet whose policies do as well as it is told."""

    def __init__(self, returns: float, exams: list[float]) -> None:
        self._returns = returns
        self._exams = exams

    def table(self) -> NDArray[np.float32]:
        return np.ones(PARAMETER_COUNT, np.float32)

    def draw(self) -> NDArray[np.int64]:
        return np.zeros(SMALL.pairs, np.int64)

    def rollouts(
        self, parameters: Parameters, starts: Sequence[int], seeds: Sequence[int]
    ) -> Iterator[tuple[int, Score]]:
        for index in range(len(starts)):
            yield index, Score((self._returns, self._returns), steps=1, seconds=0.0)

    def exam(self, parameters: Parameters, seeds: Sequence[int]) -> list[float]:
        return [self._exams.pop(0)] * len(seeds)


def test_training_ends_at_the_first_exam_that_reaches_the_target() -> None:
    fleet = Scripted(returns=460.0, exams=[474.0, 475.0, 500.0])

    assert [generation.exam for generation in learning.train(SMALL, fleet)] == [474.0, 475.0]


def test_no_exam_is_held_for_a_poor_generation() -> None:
    settings = Settings(seed=3, population=8, generations=2)

    generations = list(learning.train(settings, Scripted(returns=100.0, exams=[])))

    assert [generation.exam for generation in generations] == [None, None]


# The command line


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of fonts open once it has used them; that is no leak of ours."""
    generation = _first_generation(SMALL)
    picture.draw({"any": [(0.1, generation)]}, 475.0, tmp_path_factory.mktemp("fonts") / "any.png")


@pytest.mark.usefixtures("fonts")
def test_missing_the_target_is_a_failure_that_still_draws_the_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = tmp_path / "new" / "curve.png"

    code = main(f"--serial --generations 2 --population 4 --out {curve}".split())

    assert code == 1
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert "was not reached in 2 generations" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--population=7", "choose an even number"),
        ("--target=501", "CartPole-v1 ends every episode"),
        ("--generations=0", "at least one is needed"),
        ("--seed=-1", "zero or a positive number"),
    ],
)
def test_bad_options_are_refused_with_advice(
    option: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--serial", option]) == 2
    assert complaint in capsys.readouterr().err
