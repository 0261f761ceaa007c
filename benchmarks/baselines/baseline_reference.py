"""SAC and TD3 of Stable-Baselines3 in this project's environment, to hold this project's own against.

    python benchmarks/baselines/baseline_reference.py --frames 50000 --out runs/reference
    dqs-report runs/sweeps/baselines/cartpole_fast/sac runs/sweeps/baselines/cartpole_fast/td3 runs/reference --out DIR

Task, action repeat, networks, batch, random steps, updates per step and evaluations are those of the configuration;
step sizes, temperature, target update and discount are each library's defaults, which are the same. TD3 explores with
noise of 0.1, as this project's does. Each run leaves a `scores.jsonl` as dqs-fit does, so that dqs-report takes it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from tensordict import TensorDict
from torchrl.envs import EnvBase

from dqs_lightning.cli.config_file import config_chain
from dqs_lightning.cli.provenance import write_run
from dqs_lightning.envs import DMControl
from dqs_lightning.evaluation.returns import episode_returns, mean_with_interval

ALGORITHMS = {"sac": SAC, "td3": TD3}


class AsGymnasium(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment of this project as Gymnasium has them."""

    def __init__(self, env: EnvBase) -> None:
        self.env = env
        size = env.observation_spec["observation"].shape[-1]
        self.action_dim = env.action_spec.shape[-1]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        return self.env.reset()["observation"][0].numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        stepped = self.env.step(TensorDict({"action": torch.from_numpy(action)[None]}, [1]))["next"]
        flags = (bool(stepped[key]) for key in ("terminated", "truncated"))
        return stepped["observation"][0].numpy(), float(stepped["reward"]), *flags, {}


class Scores(BaseCallback):
    """Evaluations as the callback `Evaluate` makes them: stochastic, and counted in frames."""

    def __init__(self, task: DMControl, folder: Path, every: int, episodes: int) -> None:
        super().__init__()
        self.task, self.file, self.every, self.episodes = task, folder / "scores.jsonl", every, episodes
        self.seconds, self.clock = 0.0, time.monotonic()

    def _on_step(self) -> bool:
        frames = self.num_timesteps * self.task.action_repeat
        if frames % self.every < self.task.action_repeat:
            self.measure(frames)
        return True

    def policy(self, observation: torch.Tensor) -> torch.Tensor:
        action, _ = self.model.predict(observation.numpy(), deterministic=False)
        noise = self.model.action_noise
        if noise is not None:
            action = np.clip(action + np.stack([noise() for _ in action]), -1, 1)
        return torch.from_numpy(action.astype(np.float32))

    def measure(self, frames: int) -> None:
        env = self.task.make(self.episodes, seed=10_000 + frames)
        mean, interval = mean_with_interval(episode_returns(env, self.policy))
        self.seconds += time.monotonic() - self.clock
        self.clock = time.monotonic()
        row = {
            "env_frames": frames,
            "updates": self.model._n_updates,
            "wall_s": round(self.seconds, 1),
            "episodes": self.episodes,
            "return_mean": round(mean, 3),
            "return_ci95": [round(bound, 3) for bound in interval],
        }
        with self.file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def train(name: str, seed: int, config: dict[str, Any], frames: int, folder: Path) -> None:
    task = DMControl(**config["environment"])
    torch.manual_seed(seed)
    env = AsGymnasium(task.make(1, seed))
    noise = NormalActionNoise(np.zeros(env.action_dim), 0.1 * np.ones(env.action_dim)) if name == "td3" else None
    # As the loader here: random blocks of eight steps first, then eight updates after each block.
    model = ALGORITHMS[name](
        "MlpPolicy",
        env,
        learning_starts=config["init_random_frames"] // task.action_repeat,
        batch_size=256,
        train_freq=8,
        gradient_steps=8,
        policy_kwargs={"net_arch": config["hidden"]},
        seed=seed,
        device="cpu",
        action_noise=noise,
    )
    model.learn(frames // task.action_repeat, Scores(task, folder, config["every_frames"], config["episodes"]))


def settings(path: Path) -> dict[str, Any]:
    """What of a configuration file, with those that it extends, both libraries are given."""
    found: dict[str, Any] = {"environment": {}}
    for content in reversed(config_chain(path).values()):
        data, model = content.get("data", {}), content.get("model", {}).get("init_args", {})
        if isinstance(data.get("environment"), dict):
            found["environment"] |= data["environment"]["init_args"]
        found |= {key: data[key] for key in ("init_random_frames",) if key in data} | content.get("evaluate", {})
        if isinstance(model.get("critic_backbone"), dict):
            found["hidden"] = model["critic_backbone"]["init_args"]["hidden"]
    return {"init_random_frames": 5_000, "hidden": [256, 256], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/cartpole_fast.yaml"))
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = settings(options.config)
    config["every_frames"] = 5_000
    for name in options.algorithms:
        for seed in options.seeds:
            folder = options.out / f"{name}-stable-baselines3" / f"seed={seed}"
            folder.mkdir(parents=True)
            environment = DMControl(**config["environment"])
            write_run(
                folder,
                ("python", "benchmarks/baselines/baseline_reference.py"),
                task=environment.name,
                method=folder.parent.name,
                seed=seed,
                action_repeat=environment.action_repeat,
                total_frames=options.frames,
                settings={},
            )
            train(name, seed, config, options.frames, folder)
            print(folder, (folder / "scores.jsonl").read_text().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
