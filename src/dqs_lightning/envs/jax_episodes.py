"""Episodes of simulations in JAX, as pure functions of a whole batch."""

from typing import Any, NamedTuple, Protocol

import numpy as np

POLICY_KEY = "state"
"""The part of a Dict of observations that is for the policy, by the convention of MuJoCo Playground."""


class Simulation(Protocol):
    """Interface of one simulation, in pure functions of JAX: that of MuJoCo Playground and of Brax."""

    @property
    def action_size(self) -> int:
        """Dimension of the action, whose numbers are in [-1, 1]."""

    @property
    def observation_size(self) -> Any:
        """Dimension of the observation, or the dimensions of its parts by name."""

    def reset(self, key: Any) -> Any:
        """Returns the first state of an episode; a state has `obs`, `reward` and `done` (0 or 1)."""

    def step(self, state: Any, action: Any) -> Any:
        """Returns the state one frame later."""


class Members(NamedTuple):
    """States of n simulations and what their episodes need beside them: arrays of JAX, [n] unless stated otherwise."""

    state: Any
    obs: Any
    """[n, observation_size]."""
    reward: Any
    done: Any
    """Whether the episode has terminated."""
    truncated: Any
    diverged: Any
    frames: Any
    """Since the episode began."""


class Episodes:
    """Episodes of n simulations: actions that are repeated, a time limit, and divergence. Pure functions of JAX.

    A simulation whose observation or reward is not finite has diverged: its episode terminates with reward 0 and the
    state before. A member whose episode is over stays as it is, with reward 0, until it is reset; so it does in the
    frames of a repeated action that are left.

    Args:
        simulation: one of them.
        num_envs: n.
        action_repeat: frames for each action; >= 1.
        episode_length: frames until an episode is truncated; >= 1.

    Raises:
        ValueError: when the observation has parts, and none is for the policy.
    """

    def __init__(self, simulation: Simulation, num_envs: int, action_repeat: int, episode_length: int) -> None:
        size = simulation.observation_size
        self._parts = not isinstance(size, int)
        if self._parts and POLICY_KEY not in size:
            raise ValueError(f"observation has parts {', '.join(size)}; must be numbers, or have a part {POLICY_KEY}")
        self.observation_size = int(np.prod(size[POLICY_KEY] if self._parts else size))
        self.action_size = simulation.action_size
        self.simulation, self._num_envs = simulation, num_envs
        self._repeat, self._length = action_repeat, episode_length
        import jax

        self.compiled_reset, self.compiled_step = jax.jit(self.reset), jax.jit(self.step)
        self.compiled_merge = jax.jit(self.merge)

    def keys(self, seed: int) -> Any:
        """Returns the random keys [n, 2] of the members; that of member i is of seed + i."""
        import jax

        return jax.vmap(jax.random.PRNGKey)(seed + jax.numpy.arange(self._num_envs))

    def reset(self, keys: Any) -> tuple[Members, Any]:
        """Returns new episodes of all members, and the keys of those that follow."""
        import jax
        from jax import numpy as jnp

        later, now = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        state = jax.vmap(self.simulation.reset)(now)
        no = jnp.zeros(self._num_envs, bool)
        frames = jnp.zeros(self._num_envs, jnp.int32)
        return _strong(Members(state, self._observed(state), state.reward, no, no, no, frames)), later

    def step(self, now: Members, action: Any) -> Members:
        """Returns the members after an action [n, action_size], which `action_repeat` frames repeat."""
        import jax

        if self._repeat == 1:
            return self._frame(now, action)

        def repeated(carry: tuple[Members, Any], _: None) -> tuple[tuple[Members, Any], None]:
            later = self._frame(carry[0], action)
            return (later, carry[1] + later.reward), None

        start = now, jax.numpy.zeros_like(now.reward)
        (later, reward), _ = jax.lax.scan(repeated, start, None, self._repeat)
        whole: Members = later._replace(reward=reward)
        return whole

    def _frame(self, now: Members, action: Any) -> Members:
        import jax
        from jax import numpy as jnp

        state = jax.vmap(self.simulation.step)(now.state, action)
        observed, frames, done = self._observed(state), now.frames + 1, state.done > 0
        truncated = (frames >= self._length) & ~done
        later = Members(state, observed, state.reward, done, truncated, jnp.zeros_like(done), frames)
        nothing, yes = jnp.zeros_like(state.reward), jnp.ones_like(done)
        lost = now._replace(reward=nothing, done=yes, diverged=yes)
        diverged = ~(jnp.isfinite(state.reward) & jnp.isfinite(observed).all(-1))
        over = now.done | now.truncated
        return _strong(self.merge(over, now._replace(reward=nothing), self.merge(diverged, lost, later)))

    def merge(self, mask: Any, ones: Any, others: Any) -> Any:
        """Returns a tree of arrays with the rows of `ones` where the mask [n] is true, and those of `others` elsewhere.

        An array that the members share, as MuJoCo Warp has them, is that of `others`.
        """
        import jax

        def of_both(one: Any, other: Any) -> Any:
            if other.shape[:1] != mask.shape:
                return other
            return jax.numpy.where(mask.reshape(-1, *[1] * (other.ndim - 1)), one, other)

        return jax.tree.map(of_both, ones, others)

    def _observed(self, state: Any) -> Any:
        observed = state.obs[POLICY_KEY] if self._parts else state.obs
        return observed.reshape(self._num_envs, -1)


def _strong(members: Members) -> Members:
    """Returns the same arrays without JAX's weak types, for which a step would be compiled again."""
    import jax

    strong: Members = jax.tree.map(lambda array: jax.lax.convert_element_type(array, array.dtype), members)
    return strong
