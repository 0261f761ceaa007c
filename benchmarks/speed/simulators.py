"""Frames per CPU-second of simulators in JAX, beside the Control Suite of dm_control, on the device that JAX chooses.

    python benchmarks/speed/simulators.py --out benchmarks/results/simulators.json

The contenders are environments of this package, stepped with the same uniform actions and without a policy:
`DMControl`, whose members are stepped in turn, and `Playground` and `Brax`, whose members advance together. A step of
each is one action repeated for two frames. Compiling is measured by itself, in wall seconds. The contenders of a task
take turns; figures are medians over turns of process CPU time on one thread. The last line holds name=value pairs.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import torch
from collect import Contender, measure

from dqs_lightning.cli.provenance import about
from dqs_lightning.envs import Brax, DMControl, Environment, Playground

warnings.filterwarnings("ignore")
TASKS: dict[str, dict[str, Environment]] = {
    "cartpole-swingup": {
        "DMControl": DMControl("cartpole", "swingup", 2),
        "Playground": Playground("CartpoleSwingup", 2),
    },
    "walker-walk": {"DMControl": DMControl("walker", "walk", 2), "Playground": Playground("WalkerWalk", 2)},
    "halfcheetah": {"DMControl": DMControl("cheetah", "run", 2), "Brax": Brax("halfcheetah", 2)},
}
STEPS = 1024
"""Actions of a contender's turn, over all members."""


def turns_of(environment: Environment, num_envs: int, compiling: dict[str, float]) -> Contender:
    """Steps, and resets members that have ended; the wall time of the first reset and step goes to `compiling`."""
    start = time.perf_counter()
    env = environment.make(num_envs, seed=0)
    actions = (torch.rand(STEPS // num_envs, *env.action_spec.shape) * 2 - 1).to(env.device)
    tensordict = env.reset()
    env.step(tensordict.set("action", actions[0]))
    compiling[type(environment).__name__] = time.perf_counter() - start
    while True:
        for action in actions:
            _, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
        yield float(tensordict["observation"].sum())


def main() -> None:
    """Let the contenders of each task take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_envs", type=int, nargs="+", default=[16, 64], help="members; divisors of 1024")
    parser.add_argument("--turns", type=int, default=9, help="timed turns of each contender")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for task, environments in TASKS.items():
        for num_envs in options.num_envs:
            torch.manual_seed(0)
            compiling: dict[str, float] = {}
            contenders = {name: turns_of(made, num_envs, compiling) for name, made in environments.items()}
            seconds = measure(contenders, options.turns)
            for name, values in seconds.items():
                rate = 2 * STEPS / statistics.median(values)
                row = {"task": task, "num_envs": num_envs, "environment": name, "frames_per_cpu_s": rate}
                rows.append({**row, "of_dm_control": rate * statistics.median(seconds["DMControl"]) / (2 * STEPS)})
                rows[-1]["compiling_s"] = compiling[name]
                shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values())
                print("".join(f"{text:18}" for text in shown))
    if options.out:
        device = str(jax.devices()[0])
        content = {"rows": rows, "turns": options.turns, "device": device, "jax": jax.__version__, "about": about()}
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(" ".join(f"{r['task']}_{r['num_envs']}_{r['environment']}={r['frames_per_cpu_s']:.0f}" for r in rows))


if __name__ == "__main__":
    main()
