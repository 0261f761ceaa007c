"""Tests of MuJoCo Playground's and Brax's tasks as batched environments against the packages' own functions."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

jax = pytest.importorskip("jax")
pytest.importorskip("mujoco_playground")
pytest.importorskip("brax")

from brax.envs import get_environment
from jax import numpy as jnp
from mujoco_playground import registry

from dqs_lightning.cli import fit
from dqs_lightning.envs import Brax, Environment, Playground

CARTPOLE = Playground("CartpoleSwingup", action_repeat=2, episode_length=20)
PENDULUM = Brax("inverted_pendulum", action_repeat=2, episode_length=20, kwargs={"backend": "mjx"})
SMALL = [
    "--data.environment.episode_length=25", "--data.num_envs=16", "--data.batch_size=32",
    "--data.init_random_frames=320", "--data.updates_per_step=0.05", "--model.critic_backbone.hidden=[8]",
    "--model.actor_backbone.hidden=[8]", "--model.sampler.steps=2", "--evaluate.every_frames=640",
    "--evaluate.episodes=16", "--evaluate.best_of=1", "--trainer.accelerator=cpu", "--ckpt_path=auto",
]  # fmt: skip


def simulation_of(environment: Environment) -> Any:
    if isinstance(environment, Playground):
        return registry.load(environment.env_name, config_overrides={"impl": "jax"})
    assert isinstance(environment, Brax)
    return get_environment(environment.env_name, **(environment.kwargs or {}))


@pytest.mark.parametrize("environment", [CARTPOLE, PENDULUM], ids=lambda environment: environment.name)
def test_steps_equal_those_of_the_package(environment: Environment) -> None:
    env = environment.make(3, seed=0)
    check_env_specs(env)
    env.set_seed(4)
    now = env.reset()
    simulation = simulation_of(environment)
    reset, step = jax.jit(jax.vmap(simulation.reset)), jax.jit(jax.vmap(simulation.step))
    keys = jax.vmap(jax.random.PRNGKey)(4 + jnp.arange(3))
    state = reset(jax.vmap(jax.random.split)(keys)[:, 1])
    for action in torch.linspace(-0.03, 0.03, 15).view(5, 3, 1):
        assert torch.allclose(now["observation"], torch.tensor(np.asarray(state.obs)), atol=1e-5)
        now["action"] = action
        now = env.step(now)["next"]
        total = 0.0
        for _ in range(2):
            state = step(state, jnp.array(action.numpy()))
            total = total + state.reward
        assert not now["done"].any()
        assert torch.allclose(now["reward"].squeeze(-1), torch.tensor(np.asarray(total)), atol=1e-5)


def test_an_unknown_task_or_setting_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^env_name=WalkerWlk: no such task; did you mean WalkerWalk\?$"):
        Playground("WalkerWlk").make(1, seed=0)
    with pytest.raises(ValueError, match=r"^env_name=CartpoleSwingup: .*no_such_key"):
        Playground("CartpoleSwingup", config_overrides={"no_such_key": 1}).make(1, seed=0)
    with pytest.raises(ValueError, match=r"^env_name=half_cheetah: no such task; did you mean halfcheetah\?$"):
        Brax("half_cheetah").make(1, seed=0)
    with pytest.raises(ValueError, match=r"^episode_length=0: must be"):
        Brax(episode_length=0)


@pytest.mark.parametrize(
    ("environment", "task"),
    [("Playground", "CartpoleSwingup"), ("Playground", "WalkerWalk"), ("Brax", "inverted_pendulum")],
)
def test_a_run_trains_evaluates_and_continues_exactly(
    environment: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is continued in mid-episode has the same scores as an uninterrupted one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DQS_RUN_DIR", "")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def scores(folder: str, frames: int) -> list[float]:
        chosen = [f"--data.environment.env_name={task}", f"--data.total_frames={frames}", f"--run_dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["dqs-fit", f"--data.environment={environment}", *chosen, *SMALL])
        assert fit.main() == 0
        rows = [json.loads(line) for line in (tmp_path / folder / "scores.jsonl").read_text().splitlines()]
        assert [row["env_frames"] for row in rows] == list(range(640, frames + 1, 640))
        return [row["return_mean"] for row in rows]

    whole = scores("whole", 1_920)
    first = scores("parts", 640)
    assert whole[:1] == first and len(set(whole)) == 3
    assert scores("parts", 1_920) == whole
