"""What one full update of DQS costs beside one of SAC: walker's sizes, one thread, ratios of one run.

    python benchmarks/speed/update.py --updates 40 --out benchmarks/results/update.json

Rows take turns, so that a machine that slows down slows all of them; times are medians of CPU time. `plain` is the
default with SAC's critic and a fixed temperature; the rows after it change one thing of it each; `published` is the
paper's estimator at one noised action a state and 20 steps. `sac_same_critic` is this project's SAC on the default's
critic. Stable-Baselines3 is no dependency of this project: its row wants `pip install stable-baselines3`. Beside each
row of DQS stand the operations and bytes of its matrix products (`floor.py`) and the floor's share of the time: what
the products alone would take at this machine's measured rate of each type. The last line holds name=value pairs.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from floor import count, least_seconds, matrix_rate, touched
from peers import ACTION, BATCH, OBSERVATION, SameCritic, Update, batch, sb3_sac, torchrl_sac
from torch import Tensor

from dqs_lightning.agents import DQS, Soft, SquaredError
from dqs_lightning.agents.backups import SoftPolicyValue
from dqs_lightning.agents.measured import Measured
from dqs_lightning.cli.machine import keep_freed_memory
from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import (
    MLP,
    AroundReplayActions,
    EulerMaruyama,
    GuidedDefensive,
    Importance,
    MomentMatched,
    MultiStart,
    OnTrajectory,
    PosteriorMode,
    RawScore,
    TargetScore,
)
from dqs_lightning.nn.critics import soft_update
from dqs_lightning.temperature import Constant

PUBLISHED: dict[str, Any] = {
    "training_points": AroundReplayActions(),
    "preconditioning": RawScore(),
    "sampler": EulerMaruyama(20),
}
PLAIN: dict[str, Any] = {
    "critic_backbone": MLP(),
    "critic_reduction": "min",
    "critic_loss": SquaredError(),
    "normalise_observations": False,
    "temperature": Constant(),
}
"""The critic that SAC has (`configs/methods/sb3_critic.yaml`), with which all rows but the first four are compared."""
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain_compiled": {"compile_losses": True},
    "compiled_32_states": {"compile_losses": True, "training_points": OnTrajectory(32)},
    "float32": {"inner_precision": "float32"},
    "10_steps": {"sampler": MomentMatched(10)},
    "k16": {"energy_estimator": MultiStart(16)},
    "k64": {"energy_estimator": MultiStart(64)},
    "8_points": {"training_points": OnTrajectory(64, 8, 8)},
    "32_states": {"training_points": OnTrajectory(32)},
    "guided_defensive": {"energy_estimator": GuidedDefensive(8)},
    "importance": {"energy_estimator": Importance(8)},
    "posterior_mode": {"energy_estimator": PosteriorMode()},
    "soft_backup": {"backup": Soft()},
    "entropic_backup": {"backup": SoftPolicyValue()},
    "published_k100": {"energy_estimator": TargetScore(100), **PUBLISHED},
    "published_k100_float32": {"energy_estimator": TargetScore(100), "inner_precision": "float32", **PUBLISHED},
    "published_k1000": {"energy_estimator": TargetScore(1000), **PUBLISHED},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "compiled": {"compile_losses": True},
    "every_2nd": {"actor_every": 2},
    "every_3rd": {"actor_every": 3},
    "every_4th": {"actor_every": 4},
    "compiled_every_2nd": {"actor_every": 2, "compile_losses": True},
    "compiled_every_3rd": {"actor_every": 3, "compile_losses": True},
    "compiled_every_4th": {"actor_every": 4, "compile_losses": True},
    "squared_error": {"critic_loss": SquaredError()},
    "compiled_squared_error": {"compile_losses": True, "critic_loss": SquaredError()},
    **{name: {**PLAIN, **changes} for name, changes in CHANGES.items()},
}
BRIEF = ("default", "plain")
SLOW = {"published_k1000": 10}
"""Rows that take only every n-th turn."""


class Step:
    """The arithmetic of `DQS.training_step`, without a Trainer around it.

    Args:
        components: of DQS, by name.
        size: of the batch.
        action_dim: dimension of the action.

    Attributes:
        updates: updates of one call, after which the temperature is measured again.
    """

    def __init__(self, components: dict[str, Any], size: int = BATCH, action_dim: int = ACTION) -> None:
        own = copy.deepcopy(components)  # a temperature has a state
        self.agent = DQS(OBSERVATION, action_dim, **own)
        self.optimizer = self.agent.configure_optimizers()
        self.batch = batch(size, action_dim)
        self.updates = self.agent.actor_every * Measured.EVERY

    def __call__(self) -> None:
        """Makes `updates` updates."""
        for index in range(self.updates):
            self.update(index)

    def update(self, index: int) -> None:
        """Makes the update of an index from 0 to `updates` - 1; at 0 the temperature is measured."""
        metrics = self.learn(index)
        if index == 0:
            measured = Measured(self.agent, self.batch["observation"], metrics["ess"])
            self.agent.temperature.step(measured, self.updates)

    def learn(self, index: int) -> dict[str, Tensor]:
        """Makes an update without the temperature's share; returns the metrics of the losses."""
        agent = self.agent
        loss, metrics = agent.fused_losses(self.batch, index % agent.actor_every == 0)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        agent.update_observation_norm(self.batch["observation"])
        soft_update(agent.target_critic, agent.critic, agent.tau)
        return metrics


def main() -> None:
    """Time the rows in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--updates", type=int, default=40, help="timed turns of each row; a turn of DQS is several updates"
    )
    parser.add_argument("--brief", action="store_true", help="the default, plain and SAC alone, ten turns")
    parser.add_argument("--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of DQS; SAC stands beside")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    updates = 10 if options.brief else options.updates
    wanted = BRIEF if options.brief else ("default", *options.rows)
    steps = {name: Step(changes) for name, changes in VARIANTS.items() if name in wanted}
    peers = {
        "sb3_sac": sb3_sac(),
        "torchrl_sac": torchrl_sac(),
        "sac_same_critic": SameCritic(),
        "sac_same_critic_every_3rd": SameCritic(3),
    }
    rows: dict[str, Update] = {name: row for name, row in peers.items() if row is not None} | steps
    if peers["sb3_sac"] is None:
        print("no row sb3_sac: pip install stable-baselines3")
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(-3, updates):
        for name, row in rows.items():
            if turn % SLOW.get(name, 1) == 0:
                start = time.process_time()
                row()
                if turn >= 0:
                    seconds[name].append((time.process_time() - start) / getattr(row, "updates", 1))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rate = matrix_rate()
    floors = {
        name: {
            "operations": sum(count(step.agent, BATCH).values()),
            "bytes": sum(touched(step.agent, BATCH).values()),
            "share": least_seconds(step.agent, BATCH, rate) / medians[name],
        }
        for name, step in steps.items()
    }
    print(f"measured rate of matrix products: {', '.join(f'{v / 1e9:.0f} GFLOP/s {k}' for k, v in rate.items())}")
    print(
        f"{'row':24} {'ms':>8} {'updates/CPU-s':>14} {'rate / default':>15} {'GFLOP':>7} {'MB':>6} {'floor / time':>13}"
    )
    for name, median in medians.items():
        floor = ""
        if name in floors:
            least = floors[name]
            floor = f"{least['operations'] / 1e9:7.2f} {least['bytes'] / 1e6:6.1f} {least['share']:13.2f}"
        print(f"{name:24} {median * 1e3:8.1f} {1 / median:14.1f} {medians['default'] / median:15.2f} {floor}")
    if options.out:
        result = {"median_s": medians, "floor": floors, "matrix_rate": rate, "updates": updates}
        options.out.write_text(json.dumps(result | {"about": about()}, indent=2) + "\n")
    pairs = {f"{name}_updates_per_cpu_s": 1 / median for name, median in medians.items()}
    against = "sb3_sac" if "sb3_sac" in medians else "torchrl_sac"
    pairs |= {"dqs_updates_per_cpu_s": 1 / medians["default"], "ratio": medians[against] / medians["default"]}
    print(" ".join(f"{name}={value:.2f}" for name, value in pairs.items()))


if __name__ == "__main__":
    main()
