"""Safe depth: predictions against runs in which the answer does change."""

import numpy as np
import pytest
from loopscope.dynamics.trajectory.safe_depth import judged_from, measured_depth, predicted_depth


def run(law, loops, horizon, velocity, margin):
    """A two-token answer whose margin falls along the path of the steps; residuals, states, logits and true answers."""
    steps = law(np.arange(horizon, dtype=float))
    path = np.concatenate([[0], np.cumsum(steps)])
    lead = margin - velocity * (path - path[loops])
    logits = np.stack([lead, np.zeros_like(lead)], -1)
    answers = logits.argmax(-1)
    return steps[:loops], path[: loops + 1] + 10, (logits[loops - 1], logits[loops]), answers


@pytest.mark.parametrize(
    ("law", "margin"),
    [
        (lambda t: np.ones_like(t), 8.5),
        (lambda t: 0.9**t, 0.8),
        (lambda t: 1.2**t, 500.0),
        (lambda t: 1 / (t + 1), 1.0),
    ],
    ids=["drift", "settling too late", "explosion", "slow drift"],
)
def test_the_prediction_is_the_depth_at_which_the_answer_changes(law, margin):
    residual, state, logits, answers = run(law, 16, 64, 1.0, margin)
    prediction = predicted_depth(residual, state_norm=state, step_cosine=np.ones(16), logits=logits, horizon=64)
    assert prediction.method == "margin"
    assert abs(prediction.depth - measured_depth(answers, 16)) <= 1  # the answer changes between two loops
    assert not prediction.unlimited


def test_a_settling_loop_whose_margin_outlasts_its_path_is_safe_for_ever():
    residual, state, logits, answers = run(lambda t: 0.8**t, 16, 64, 1.0, 1.0)
    prediction = predicted_depth(residual, state_norm=state, logits=logits, horizon=64)
    assert (prediction.depth, prediction.unlimited) == (64, True)
    assert measured_depth(answers, 16) == 64


def test_the_weakest_twentieth_may_change_but_no_more():
    residual = np.ones((100, 16))
    state = np.full((100, 17), 1e4)
    before, after = np.zeros((100, 2)), np.zeros((100, 2))
    after[:, 0] = 1000.0
    before[:, 0] = 1001.0
    for weak, expected in ((5, 64), (6, 18)):
        a, b = after.copy(), before.copy()
        a[:weak, 0], b[:weak, 0] = 2.5, 3.5
        prediction = predicted_depth(
            residual, state_norm=state, step_cosine=np.ones((100, 16)), logits=(b, a), horizon=64
        )
        assert prediction.depth == expected
        assert (prediction.per_token[:weak] == 18).all()


def test_settled_states_are_safe_and_runaway_ones_are_not():
    settled = predicted_depth(np.r_[1.0, np.zeros(15)], state_norm=np.ones(17))
    assert settled.unlimited and settled.depth == 64
    runaway = predicted_depth(3.0 ** np.arange(16), state_norm=3.0 ** np.arange(17))
    assert runaway.depth == 16
    assert runaway.sentence == "safe depth 16"


def test_bad_requests():
    with pytest.raises(ValueError, match="horizon"):
        predicted_depth(np.ones(16), state_norm=np.ones(17), horizon=8)
    with pytest.raises(ValueError, match="logits"):
        predicted_depth(np.ones(16), state_norm=np.ones(17), logits=(np.ones(3), np.ones(4)))
    with pytest.raises(ValueError, match="reference"):
        measured_depth(np.zeros((3, 2)), 5)


def test_a_horizon_that_looks_no_further_says_so():
    prediction = predicted_depth(1.04 ** np.arange(64), state_norm=np.full(65, 1e6), horizon=64)
    assert (prediction.depth, prediction.words) == (64, "64")
    assert "no deeper one was looked at" in prediction.sentence
    assert predicted_depth(0.5 ** np.arange(16), state_norm=np.ones(17), horizon=64).words == "≥ 64"


@pytest.mark.parametrize(("dead_from", "depth"), [(13, 12), (9, 8), (17, 64)])
def test_a_model_whose_answers_died_before_the_last_loop_is_not_safe(dead_from, depth):
    steady = predicted_depth(0.5 ** np.tile(np.arange(16), (20, 1)), state_norm=np.full((20, 17), 4.0), horizon=64)
    assert steady.depth == 64
    answers = np.where(np.arange(17)[:, None] < dead_from, 3, 0) * np.ones(20, int)
    judged = judged_from(steady, answers, reference=8)
    assert judged.depth == depth and judged.unlimited == (depth == 64)


def test_answers_that_are_not_finite_do_not_stand():
    steady = predicted_depth(0.5 ** np.tile(np.arange(8), (4, 1)), state_norm=np.full((4, 9), 4.0), horizon=64)
    assert judged_from(steady, np.full((9, 4), -1), reference=4).depth < 64


def test_undecided_loops_are_taken_to_last():
    steps = np.array([7.56, 7.41, 7.27, 7.14, 7.01, 6.89, 6.80])
    prediction = predicted_depth(steps, state_norm=np.full(8, 50.0), step_cosine=np.full(7, -0.4), horizon=64)
    assert not prediction.unlimited and prediction.depth < 64
