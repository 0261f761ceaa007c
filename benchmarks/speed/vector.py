"""Environment steps per CPU-second of eight HalfCheetah-v5, beside Gymnasium's own vector environment.

    python benchmarks/speed/vector.py --out benchmarks/results/vector.json

`gymnasium` is `gymnasium.make_vec` with its synchronous vectorisation, which resets members that have ended. `step` is
`Gym(...).make` with TorchRL's `step`, and `reset` where members have ended; `step_and_maybe_reset` is TorchRL's method
of that name, which in addition makes the TensorDict of the step after; `collection` is what
`OnlineData` does in a run: environment with checks of its results, collector and replay buffer. There is no policy:
the first three have the same actions, drawn beforehand, and the last draws uniform ones. The contenders take turns;
figures are medians over turns of process CPU time on one thread, and `of_gymnasium` is the median of the ratios of
turns. A step is one action in one environment. The last line holds name=value pairs.
"""

import argparse
import json
import os
import statistics
import warnings
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import gymnasium
import torch
from collect import Contender, Uniform, measure, ours
from gymnasium.spaces.utils import flatdim

from dqs_lightning.cli.provenance import about
from dqs_lightning.envs import Gym

warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning|gymnasium)\b.*")
OURS, THEIRS, AIM = "step", "gymnasium", 0.9
STEPS = 1024
"""Environment steps of a contender's turn."""


def vector(id: str, actions: torch.Tensor) -> Contender:
    """Gymnasium's vector environment; actions [steps, n, dimensions]."""
    env = gymnasium.make_vec(id, num_envs=actions.shape[1], vectorization_mode="sync")
    env.reset(seed=0)
    rows = list(actions.numpy())
    while True:
        for row in rows:
            env.step(row)
        yield rows


def step(id: str, actions: torch.Tensor) -> Contender:
    """This package's environment of the same members, by `step`."""
    env, rows = Gym(id).make(actions.shape[1], seed=0), actions.unbind()
    tensordict = env.reset()
    while True:
        for row in rows:
            over = env.step(tensordict.set("action", row)).pop("next").get("done")
            if over.any():
                tensordict = env.reset(tensordict.exclude("action").set("_reset", over))
        yield tensordict


def step_and_maybe_reset(id: str, actions: torch.Tensor) -> Contender:
    """The same, by `step_and_maybe_reset`."""
    env, rows = Gym(id).make(actions.shape[1], seed=0), actions.unbind()
    tensordict = env.reset()
    while True:
        for row in rows:
            _, tensordict = env.step_and_maybe_reset(tensordict.set("action", row))
        yield tensordict


def main() -> None:
    """Let the contenders take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="HalfCheetah-v5", help="the environment")
    parser.add_argument("--num_envs", type=int, default=8, help="members of each contender; divides 1024")
    parser.add_argument("--turns", type=int, default=25, help="timed turns of each contender")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = flatdim(gymnasium.make(options.id).action_space)
    actions = torch.rand(STEPS // options.num_envs, options.num_envs, size) * 2 - 1
    seconds = measure(
        {
            THEIRS: vector(options.id, actions),
            OURS: step(options.id, actions),
            "step_and_maybe_reset": step_and_maybe_reset(options.id, actions),
            "collection": ours(Gym(options.id), options.num_envs, Uniform, STEPS),
        },
        options.turns,
    )
    rate = {name: STEPS / statistics.median(values) for name, values in seconds.items()}
    ratio = {
        name: statistics.median(b / a for a, b in zip(values, seconds[THEIRS], strict=True))
        for name, values in seconds.items()
    }
    for name, value in rate.items():
        print(f"{name:20} {value:8.0f} steps/CPU-s {ratio[name]:6.3f} of {THEIRS}")
    if options.out:
        content = {
            "id": options.id,
            "num_envs": options.num_envs,
            "steps_per_cpu_s": rate,
            "of_gymnasium": ratio,
            "aim": AIM,
            "aim_met": ratio[OURS] >= AIM,
            "turns": options.turns,
            "steps_per_turn": STEPS,
            "about": about(),
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(" ".join(f"{name}_of_gymnasium={value:.3f}" for name, value in ratio.items()))


if __name__ == "__main__":
    main()
