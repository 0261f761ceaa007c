"""Environment steps per CPU-second of collection on walker-walk, beside TorchRL's own environment and bare dm_control.

    python benchmarks/speed/collect.py --out benchmarks/results/collect.json

`ours`: what `OnlineData` does in a run, collector, environments and replay buffer, with n environments; `torchrl`:
`DMControlEnv` with its observations joined in float32, one alone or n in a `SerialEnv`, the same collector and buffer.
Each acts with the default agent (diffusion, six evaluations of the network an action) and with uniformly random
actions. `bare` is dm_control alone with random actions: no collection in this process is faster. The contenders take
turns; figures are medians over turns of process CPU time, one thread, ratios those of turns. A step is one action; it
is `--action_repeat` frames.

Where the time goes at `PROFILED` environments comes from clocks around the functions named in `PARTS`, each without
what it calls of the others. The last line holds name=value pairs.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import mujoco
import numpy as np
import torch
from clock import Clock
from dm_control import suite
from dm_control.rl.control import Environment as Suite
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    CatTensors,
    Compose,
    DMControlEnv,
    DoubleToFloat,
    EnvBase,
    SerialEnv,
    TransformedEnv,
)

from dqs_lightning.agents import DQS, Agent
from dqs_lightning.cli.provenance import about
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.envs import DMControl, Environment
from dqs_lightning.envs.dm_control import DMControlBatch

warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
STEPS = 256
"""Environment steps of a contender's turn; whole blocks for every number of environments."""
ENVIRONMENTS, PROFILED, AIM = (1, 2, 4, 8, 16), 8, 1000
PARTS: list[tuple[Any, str, str]] = [
    *((mujoco, name, "mujoco") for name in ("mj_step", "mj_step1", "mj_step2", "mj_forward")),
    *((Suite, name, "dm_control") for name in ("step", "reset")),
    *((DMControlBatch, name, "our_environment") for name in ("_step", "_reset")),
    (DQS, "forward", "policy"),
    (TensorDictReplayBuffer, "extend", "replay"),
    (TensorDictReplayBuffer, "sample", "replay"),
]
REST = "collector_and_tensordict"
Contender = Generator[object, None, None]
"""Each `next` collects `STEPS` environment steps."""


class Uniform(Agent):
    """A policy that costs nothing: uniformly random actions."""

    discount = 0.99

    def sample(self, observation: torch.Tensor, num: int = 1, deterministic: bool = False) -> torch.Tensor:
        return torch.rand(num, *observation.shape[:-1], self.action_dim) * 2 - 1

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.sample(observation)[0]


def ours(environment: Environment, num_envs: int, policy: Callable[[int, int], Agent], steps: int = STEPS) -> Contender:
    """A batch of one transition for each `steps` that a run's loader has collected."""
    data = OnlineData(
        environment,
        total_frames=10**9,
        num_envs=num_envs,
        batch_size=1,
        replay_size=10_000,
        init_random_frames=0,
        updates_per_step=1 / steps,
    )
    agent = policy(data.observation_dim, data.action_dim)
    yield from OnlineLoader(data, agent, data.source(agent))


def torchrl_env(repeat: int) -> EnvBase:
    """Walker as TorchRL wraps it, with one flat float32 observation."""
    keys = ["orientations", "height", "velocity"]
    join = [DoubleToFloat(), CatTensors(keys, "observation")]
    return TransformedEnv(DMControlEnv("walker", "walk", frame_skip=repeat), Compose(*join))


def torchrl(num_envs: int, repeat: int, policy: Callable[[int, int], Agent]) -> Contender:
    """TorchRL's collector over its own environments into its replay buffer, in blocks of a run's size."""
    env = torchrl_env(repeat)
    act = policy(env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
    if num_envs > 1:
        env = SerialEnv(num_envs, lambda: torchrl_env(repeat))
    module = TensorDictModule(act, in_keys=["observation"], out_keys=["action"])
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000))
    block = 8 * num_envs
    for index, rows in enumerate(Collector(env, module, frames_per_batch=block, total_frames=-1), 1):
        buffer.extend(rows.reshape(-1))
        if index * block % STEPS == 0:
            yield index


def bare(repeat: int) -> Contender:
    """The suite's environment and random actions, drawn beforehand."""
    env = suite.load("walker", "walk", task_kwargs={"random": 0})
    spec = env.action_spec()
    actions = np.random.default_rng(0).uniform(spec.minimum, spec.maximum, (STEPS, *spec.shape))
    env.reset()
    while True:
        for action in actions:
            for _ in range(repeat):
                env.step(action)
        yield actions


def measure(contenders: dict[str, Contender], turns: int) -> dict[str, list[float]]:
    """CPU seconds of each turn of each contender, after two turns that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 2):
        for name, contender in contenders.items():
            start = time.process_time()
            next(contender)
            if turn >= 2:
                seconds[name].append(time.process_time() - start)
    return seconds


def profile(contender: Contender, turns: int) -> dict[str, float]:
    """Shares of the CPU time of `turns` turns by part."""
    clock = Clock()
    with contextlib.ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(clock.around(owner, name, part))
        start = time.process_time()
        for _ in range(turns):
            next(contender)
        total = time.process_time() - start
    shares = {part: seconds / total for part, seconds in clock.seconds.items()}
    return {**shares, REST: 1 - sum(shares.values())}


def main() -> None:
    """Let the contenders take turns, then profile one of them, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25, help="timed turns of each contender")
    parser.add_argument("--action_repeat", type=int, default=1, help="frames of an environment step")
    parser.add_argument("--brief", action="store_true", help="three turns, a few of the contenders: half a minute")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    turns, counts = (3, (1, PROFILED)) if options.brief else (options.turns, ENVIRONMENTS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    repeat = options.action_repeat
    contenders: dict[str, Contender] = {}
    for kind, policy in (("diffusion", DQS), ("random", Uniform)):
        contenders |= {f"ours_{kind}_{n}": ours(DMControl("walker", "walk", repeat), n, policy) for n in counts}
        contenders |= {f"torchrl_{kind}_{n}": torchrl(n, repeat, policy) for n in (1, PROFILED)}
    contenders["bare"] = bare(repeat)
    seconds = measure(contenders, turns)
    rate = {name: STEPS / statistics.median(values) for name, values in seconds.items()}

    def over(name: str, other: str) -> float:
        """How many times as many steps as another, the median over turns."""
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))

    against = {name: {f"of_{o}": over(name, o) for o in ("torchrl_diffusion_1", "bare")} for name in rate}
    print(f"{'contender':24} {'steps/CPU-s':>12} {'frames/CPU-s':>13} {'/ torchrl_diffusion_1':>22} {'/ bare':>7}")
    for name, value in rate.items():
        ratios = against[name]
        print(f"{name:24} {value:12.0f} {value * repeat:13.0f} {ratios['of_torchrl_diffusion_1']:22.2f} "
              f"{ratios['of_bare']:7.2f}")  # fmt: skip
    profiled = f"ours_diffusion_{PROFILED}"
    shares = profile(contenders[profiled], turns)
    print(f"\n{profiled}: " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))
    for contender in contenders.values():
        contender.close()
    if options.out:
        content = {
            "steps_per_cpu_s": rate,
            "frames_per_cpu_s": {name: value * repeat for name, value in rate.items()},
            "ratios": against,
            "shares": {profiled: shares},
            "aim_steps_per_cpu_s": AIM,
            "aim_met": rate[profiled] >= AIM,
            "turns": turns,
            "steps_per_turn": STEPS,
            "about": about(),
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(" ".join(f"{name}_steps_per_cpu_s={value:.0f}" for name, value in rate.items()))


if __name__ == "__main__":
    main()
