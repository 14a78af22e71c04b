import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from mf_zoo.layers import (
    BackwardRule,
    MeanFieldStage,
    MidpointRule,
    QuadratureRule,
    Reflect,
    UniformRule,
    UniformStraightThroughRule,
    reflect,
    register_rule,
    rules,
)
from mf_zoo.layers import quadrature as quadrature_rules

RULES = [BackwardRule(), MidpointRule(), UniformRule(), UniformStraightThroughRule()]


def steps(rule, times, horizon):
    return ops.convert_to_numpy(rule(ops.convert_to_tensor(np.array(times, "float32")), horizon))


def test_steps_worked_out_by_hand():
    times = [0.5, 2.0, 3.0]
    np.testing.assert_allclose(steps(BackwardRule(), times, 4.0), [0.5, 1.5, 1.0])
    # Cells end at 1.25 and 2.5.
    np.testing.assert_allclose(steps(MidpointRule(), times, 4.0), [1.25, 1.25, 1.5])
    np.testing.assert_allclose(steps(UniformRule(), times, 4.0), [4 / 3] * 3, rtol=1e-6)
    np.testing.assert_array_equal(
        steps(UniformStraightThroughRule(), times, 4.0), np.float32([4 / 3] * 3)
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_one_particle_at_its_grid_time_gets_the_whole_interval(rule):
    np.testing.assert_allclose(steps(rule, rule.grid(1, 2.5), 2.5), [2.5])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(n=st.integers(1, 20), horizon=st.floats(0.1, 50))
@settings(max_examples=25, deadline=None)
def test_grid_times_give_equal_steps(rule, n, horizon):
    np.testing.assert_allclose(steps(rule, rule.grid(n, horizon), horizon), horizon / n, rtol=2e-4)


@given(
    fractions=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12),
    horizon=st.floats(0.5, 20),
)
@settings(max_examples=50, deadline=None)
def test_steps_are_never_negative_and_fill_the_interval(fractions, horizon):
    horizon = float(np.float32(horizon))
    times = np.sort(np.float32(fractions) * np.float32(horizon))
    for rule, total in ((BackwardRule(), times[-1]), (MidpointRule(), horizon)):
        got = steps(rule, times, horizon)
        assert (got >= 0).all()
        np.testing.assert_allclose(got.sum(), total, rtol=1e-5, atol=1e-5)


def step_of_each_particle(rule, times, horizon):
    order = np.argsort(times)
    own = np.empty(len(times))
    own[order] = steps(rule, np.array(times)[order], horizon)
    return own


def test_at_a_crossing_backward_swaps_the_gap_and_midpoint_halves_the_cell():
    before, after = [1.0, 2.0 - 1e-4, 2.0 + 1e-4], [1.0, 2.0 + 1e-4, 2.0 - 1e-4]
    backward = [step_of_each_particle(BackwardRule(), t, 4.0) for t in (before, after)]
    np.testing.assert_allclose(backward, [[1, 1, 0], [1, 0, 1]], atol=1e-3)
    # Particles 1 and 2 share [1.5, 4]: its left part 0.5, its right part 2.
    midpoint = [step_of_each_particle(MidpointRule(), t, 4.0) for t in (before, after)]
    np.testing.assert_allclose(midpoint, [[1.5, 0.5, 2.0], [1.5, 2.0, 0.5]], atol=1e-3)
    # With the neighbours equally far, here wall and mirror image, nothing jumps.
    even = [step_of_each_particle(MidpointRule(), t, 2.0) for t in ([0.9999, 1.0], [1.0, 0.9999])]
    np.testing.assert_allclose(even, [[1, 1], [1, 1]], atol=1e-3)


def test_orders_of_convergence():
    """The integral of t^2 over [0, 1]: first order from the right end, second from the middle."""
    error = {}
    for rule in (BackwardRule(), MidpointRule()):
        for n in (20, 40):
            times = rule.grid(n, 1.0)
            error[type(rule), n] = abs((steps(rule, times, 1.0) * times**2).sum() - 1 / 3)
    assert error[BackwardRule, 20] / error[BackwardRule, 40] == pytest.approx(2, rel=0.1)
    assert error[MidpointRule, 20] / error[MidpointRule, 40] == pytest.approx(4, rel=0.1)


def test_names_objects_and_configurations_find_the_same_rule():
    for name, cls in (("backward", BackwardRule), ("midpoint", MidpointRule)):
        rule = quadrature_rules.get(name)
        assert type(rule) is cls
        assert quadrature_rules.serialize(rule) == name
        assert quadrature_rules.get(rule) is rule
    config = keras.saving.serialize_keras_object(MidpointRule())
    assert type(quadrature_rules.get(config)) is MidpointRule


@pytest.fixture
def own_rules(monkeypatch):
    """Rules that a test registers are forgotten after it."""
    monkeypatch.setattr(quadrature_rules._RULES, "classes", dict(quadrature_rules._RULES.classes))
    objects = keras.saving.get_custom_objects()
    before = dict(objects)
    yield
    objects.clear()
    objects.update(before)


class Powers(QuadratureRule):
    """Steps in proportion to the powers of a base: 1, b, b^2, ..."""

    def __init__(self, base=2.0):
        self.base = base

    def __call__(self, times, horizon):
        powers = self.base ** np.arange(times.shape[0])
        return times * 0 + ops.convert_to_tensor(powers * horizon / powers.sum(), "float32")

    def get_config(self):
        return {"base": self.base}


def test_a_rule_of_the_users_own_by_its_name(own_rules, tmp_path):
    assert rules()[:4] == ["backward", "midpoint", "uniform", "uniform_straight_through"]
    assert register_rule("powers")(Powers) is Powers
    assert rules()[-1] == "powers"
    stage = MeanFieldStage(keras.layers.Dense(4), 2, quadrature="powers", horizon=3.0)
    model = keras.Sequential([keras.Input((4,)), stage])
    np.testing.assert_allclose(ops.convert_to_numpy(stage.step_sizes()), [1.0, 2.0])
    assert stage.get_config()["quadrature"] == "powers"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0].quadrature) is Powers
    # With arguments it is more than its name.
    config = MeanFieldStage(keras.layers.Dense(4), 2, quadrature=Powers(3.0)).get_config()
    again = MeanFieldStage.from_config(json.loads(json.dumps(config)))
    assert type(again.quadrature) is Powers and again.quadrature.base == 3.0
    assert quadrature_rules.serialize(Powers(2.0)) == "powers"


def test_names_of_rules_are_given_once_and_to_rules_only(own_rules):
    register_rule("powers")(Powers)
    register_rule("powers")(Powers)  # as a cell of a notebook that is run again
    with pytest.raises(ValueError, match=r"Powers of .*has it\. Received: name='powers'"):
        register_rule("powers")(MidpointRule)
    with pytest.raises(ValueError, match=r"subclass of QuadratureRule\. Received: <class 'dict'>"):
        register_rule("dict")(dict)
    with pytest.raises(ValueError, match=r"not empty\. Received: name=''"):
        register_rule("")

    class Needs(QuadratureRule):
        def __init__(self, order):
            self.order = order

    with pytest.raises(ValueError, match=r"without arguments.*Received: Needs.*order"):
        register_rule("needs")(Needs)


def test_a_plain_function_gets_the_default_grid():
    np.testing.assert_allclose(quadrature_rules.grid(lambda t, horizon: t, 2, 3.0), [1.5, 3.0])


@pytest.mark.parametrize("wrong", ["simpson", 3, MidpointRule])
def test_an_unknown_rule_names_the_right_ones(wrong):
    with pytest.raises(ValueError, match=r"backward.*midpoint.*uniform.*Received: quadrature="):
        quadrature_rules.get(wrong)


def test_a_rule_without_call_says_so():
    with pytest.raises(NotImplementedError, match="must define `__call__`"):
        QuadratureRule()(None, 1.0)


def billiard(time, horizon):
    """Walks the ball from wall to wall."""
    sign = 1.0
    while not 0 <= time <= horizon:
        time = -time if time < 0 else 2 * horizon - time
        sign = -sign
    return time, sign


@given(times=st.lists(st.floats(-30, 30, width=32, allow_subnormal=False), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_reflection_is_that_of_a_billiard_ball(times):
    folded, sign = (ops.convert_to_numpy(a) for a in reflect(np.float32(times), 3.0))
    expected = [billiard(float(t), 3.0) for t in times]
    assert ((folded >= 0) & (folded <= 3.0)).all()
    np.testing.assert_allclose(folded, [e[0] for e in expected], atol=1e-5)
    inner = [i for i, e in enumerate(expected) if 1e-4 < e[0] < 3 - 1e-4]
    np.testing.assert_array_equal(sign[inner], [expected[i][1] for i in inner])


# Normal numbers: backends may flush a subnormal one to 0.
@given(times=st.lists(st.integers(0, 2**24).map(lambda i: i / 2**24), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_reflection_leaves_inner_times_alone_to_the_bit(times):
    times = np.float32(times) * np.float32(0.7)
    folded, sign = (ops.convert_to_numpy(a) for a in reflect(times, 0.7))
    np.testing.assert_array_equal(folded, times)
    np.testing.assert_array_equal(sign, 1)


def test_reflect_constraint():
    constraint = Reflect(2.0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(constraint(ops.array([-0.25, 2.5, 1.0, 4.5]))), [0.25, 1.5, 1.0, 0.5]
    )
    assert Reflect.from_config(constraint.get_config()).horizon == 2.0
    with pytest.raises(ValueError, match=r"positive number\. Received: horizon=0"):
        Reflect(0)
