"""Tests of the conversion of Gymnasium spaces to flat vectors."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dqs_lightning.envs.spaces import ActionBox, FlatObservation

UNIT = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
NESTED = spaces.Dict(
    {
        "z": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiBinary((2, 2)))),
        "a": spaces.MultiDiscrete([2, 3]),
        "m": spaces.Dict({"y": spaces.Box(-1, 1, (), np.float64), "x": spaces.Box(0, 9, (2, 2), np.int16)}),
    }
)


def test_nested_parts_are_concatenated_in_the_order_of_their_keys() -> None:
    flat = FlatObservation(NESTED)
    observation = {
        "z": (np.int64(6), np.array([[1, 0], [0, 1]], np.int8)),
        "m": {"x": np.array([[1, 2], [3, 4]], np.int16), "y": np.array(0.5)},
        "a": np.array([1, 2]),
    }
    expected = [0, 1, 0, 0, 1, 1, 2, 3, 4, 0.5, 0, 1, 0, 1, 0, 0, 1]
    assert flat(observation).tolist() == expected and flat.size == len(expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_a_box_of_any_shape_and_dtype_is_flattened(shape: tuple[int, ...], dtype: type) -> None:
    space = spaces.Box(0, 1, shape, dtype)
    flat, observation = FlatObservation(space), space.sample()
    assert flat.size == observation.size
    assert np.array_equal(flat(observation), observation.ravel())


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (IMAGE, r"observation is an image \(8, 8, 3\) of uint8"),
        (spaces.Box(0, 255, (4, 8, 8, 3), np.uint8), "observation is an image"),
        (spaces.Dict(pixels=IMAGE, state=UNIT), "observation.pixels is an image"),
        (spaces.Dict(state=UNIT, deep=spaces.Tuple((UNIT, spaces.Dict(eye=IMAGE)))), "observation.deep.1.eye is an im"),
        (spaces.Dict(words=spaces.Text(5)), "observation.words is a Text; must be Box, Discrete, MultiDiscrete, "),
        (spaces.Tuple((UNIT, spaces.Sequence(UNIT))), "observation.1 is a Sequence"),
        (spaces.Graph(UNIT, None), "observation is a Graph"),
        (spaces.OneOf((UNIT, UNIT)), "observation is a OneOf"),
        (spaces.Dict({}), "observation has no numbers"),
    ],
)
def test_unsupported_spaces_are_refused_and_named(space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        FlatObservation(space)
    assert "\n" not in str(error.value)


def test_boxes_of_bytes_that_are_not_images_are_accepted() -> None:
    assert FlatObservation(spaces.Dict(pixels=spaces.Box(0, 255, (3,), np.uint8))).size == 3
    assert FlatObservation(spaces.Box(0, 3, (2, 2, 2), np.uint8)).size == 8


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (UNIT, np.zeros(1, np.float32)),  # it would broadcast
        (spaces.Box(-1, 1, (3, 4)), np.zeros((4, 3), np.float32)),
        (UNIT, np.array(["1", "2"])),
        (UNIT, [None, None]),
        (spaces.Dict(a=UNIT, b=UNIT), {"a": np.zeros(2), "b": np.zeros(3)}),
    ],
)
def test_an_observation_that_does_not_match_its_space_raises_an_error(space: spaces.Space, observation: object) -> None:
    with pytest.raises(ValueError, match=r"observation of shape .*; must be numbers \("):
        FlatObservation(space)(observation)


def random_box(generator: np.random.Generator) -> spaces.Box:
    dtype = generator.choice([np.float16, np.float32, np.float64])
    shape = [(), (1,), (3,), (2, 3)][generator.integers(4)]
    ends = generator.choice([0.1, 1, 10, 30_000]) * generator.uniform(-1, 1, (2, *shape))
    low, high = ends.min(0).astype(dtype), ends.max(0).astype(dtype)
    return spaces.Box(low, high, shape, dtype)


def test_rounding_never_moves_an_action_out_of_its_box() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        space = random_box(generator)
        box = ActionBox(space)
        rows = torch.rand(32, box.size) * 2 - 1
        rows[0], rows[1], rows[2], rows[3] = -1, 1, -1.0000001, 2
        actions = box(rows)
        assert all(space.contains(action) for action in (actions[i, ...] for i in range(32))), space
        middle = (space.low.astype(float) + space.high.astype(float)) / 2
        np.testing.assert_allclose(actions[:4], [space.low, space.high, space.low, space.high], rtol=1e-6)
        np.testing.assert_allclose(box(torch.zeros(1, box.size))[0], middle, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_of_a_unit_box_are_unchanged_but_clipped(dtype: type) -> None:
    rows = torch.tensor([[-1.0, 0.1], [1.0000001, -2.0], [0.3, 1.0]])
    before = rows.clone()
    found = ActionBox(spaces.Box(-1, 1, (2,), dtype))(rows)
    assert found.dtype == dtype and torch.equal(rows, before) and not np.shares_memory(found, rows.numpy())
    np.testing.assert_array_equal(found, rows.numpy().clip(-1, 1).astype(dtype))


def test_actions_are_mapped_linearly_and_reach_the_bounds_exactly_in_each_dimension() -> None:
    space = spaces.Box(np.array([[-0.2, 0], [5, -1]], np.float32), np.array([[1, 10], [6, 3]], np.float32))
    box = ActionBox(space)
    assert box.size == 4
    rows = torch.tensor([[-1.0] * 4, [1.0] * 4, [0.5, 0.5, -0.5, -0.5]])
    found = box(rows)
    assert found.dtype == np.float32 and np.array_equal(found[0], space.low) and np.array_equal(found[1], space.high)
    np.testing.assert_allclose(found[2], [[0.7, 7.5], [5.25, 0]], rtol=1e-6)


def test_the_largest_finite_bounds_do_not_overflow() -> None:
    most = np.finfo(np.float64).max
    actions = ActionBox(spaces.Box(-most, most, (1,), np.float64))(torch.tensor([[-1.0], [0.0], [1.0]]))
    assert actions.tolist() == [[-most], [0], [most]]


HALF = spaces.Box(np.array([-np.inf, 0], np.float32), np.array([np.inf, 1], np.float32))


def test_given_bounds_replace_infinite_ones_and_narrow_the_others() -> None:
    box = ActionBox(HALF, -2.0, 2.0)
    assert box.low.tolist() == [-2, 0] and box.high.tolist() == [2, 1]
    box = ActionBox(HALF, [-3, 0.25], [4, 0.5])
    assert box.low.tolist() == [-3, 0.25] and box.high.tolist() == [4, 0.5]
    assert ActionBox(spaces.Box(0, np.inf, (1,)), high=2.0).high.tolist() == [2]


@pytest.mark.parametrize(
    ("space", "low", "high", "message"),
    [
        (HALF, None, None, r"infinite bounds in 1 of 2 dimensions \(first: 0\); must be finite: set action_low "),
        (HALF, -1.0, None, "infinite bounds in 1 of 2 dimensions"),
        (HALF, -1e300, 1.0, "infinite bounds"),  # it is infinite in float32
        (HALF, [-1.0], 1.0, "action_low has length 1; must be one number, or one for each of 2"),
        (HALF, -1.0, [1.0, 1.0, 1.0], "action_high has length 3"),
        (HALF, 2.0, 3.0, "leave 2.0 to 1.0 in dimension 1; low must be below high, within the environment's own 0.0 t"),
        (HALF, 0.5, 0.5, "leave 0.5 to 0.5 in dimension 0"),
        (spaces.Box(0, 9, (2,), np.int64), None, None, "its action space is a Box of int64; must be a Box of floats"),
        (spaces.Discrete(3), None, None, "its action space is a Discrete"),
        (spaces.MultiDiscrete([3, 2]), None, None, "its action space is a MultiDiscrete"),
        (spaces.MultiBinary(3), None, None, "its action space is a MultiBinary"),
        (spaces.Dict(a=UNIT), None, None, "its action space is a Dict"),
        (spaces.Tuple((UNIT,)), None, None, "its action space is a Tuple"),
        (spaces.Box(-1, 1, (0,)), None, None, "its action has no numbers"),
    ],
)
def test_unsupported_action_spaces_and_invalid_bounds_are_refused(
    space: spaces.Space, low: object, high: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ActionBox(space, low, high)
    assert "\n" not in str(error.value)
