"""Settings of training commands that end within seconds: tasks and agents."""

from collections.abc import Sequence
from pathlib import Path

from faults.runs import ROOT

CONFIGS = ROOT / "configs"
RUN = Path("r")
"""Run directory of every command, relative to its working folder."""

DIFFUSION = ["--model.energy_estimator.num_samples=4", "--model.sampler.steps=3"]
AGENTS = {
    "DQS": DIFFUSION,
    "SAC": ["--model=SAC"],
    "TD3": ["--model=TD3"],
    "PPO": ["--model=PPO", "--model.rollout_steps=32", "--model.minibatch_size=16", "--model.epochs=2"],
}
TASKS = {
    "cartpole": [
        "--data.environment=DMControl", "--data.environment.domain=cartpole", "--data.environment.task=swingup",
        "--data.environment.action_repeat=8",
    ],
    "maze": ["--data.environment=Maze"],
    "pendulum": ["--data.environment=Gym", "--data.environment.id=Pendulum-v1"],
}  # fmt: skip
REPEAT = {"cartpole": 8}
BLOCKS, WARM_UP = 24, 8
"""Number of blocks of a run, and of those with random actions; a block is 8 steps of each of 2 environments."""


def arguments(task: str, agent: str = "DQS", ranks: int = 1, workers: int = 0, extra: Sequence[str] = ()) -> list[str]:
    """Makes a command of 24 blocks, 8 of them random, 4 updates per block, three evaluations, and --ckpt_path=auto."""
    block = 2 * 8 * REPEAT.get(task, 1) * ranks
    ppo = agent == "PPO"
    if ppo:
        block = 32 * REPEAT.get(task, 1) * ranks
    total = BLOCKS * block // (2 if ppo else 1)
    warm_up = [] if ppo else [f"--data.init_random_frames={WARM_UP * block}"]
    return [
        "--config", str(CONFIGS / "default.yaml"), *TASKS[task], *AGENTS[agent],
        "--model.critic_backbone.hidden=[16,16]", "--model.actor_backbone.hidden=[16,16]",
        "--data.num_envs=2", f"--data.workers={workers}", "--data.updates_per_step=0.25", "--data.batch_size=16",
        f"--data.total_frames={total}", *(warm_up or ["--data.init_random_frames=0"]),
        f"--evaluate.every_frames={total // 3}", "--evaluate.episodes=2", "--evaluate.best_of=1",
        f"--trainer.devices={ranks}", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=4",
        f"--run_dir={RUN}", "--ckpt_path=auto", *extra,
    ]  # fmt: skip
