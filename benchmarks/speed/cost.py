"""What one environment step of training costs, and where it goes: DQS beside SAC, as K and the sampler's steps vary.

    python benchmarks/speed/cost.py --turns 60 --out benchmarks/results/cost

walker-walk, action repeat 2, one update of batch 256 for each step, networks of 256 x 256, one thread. A turn is one
environment step of every row: one action, one step of the environment, one update. Rows take turns; times are medians
of process CPU time, in milliseconds:

    environment      the simulator's step
    acting           one action
    trajectories     the sampler's paths, for the backup and for the noised points (DQS)
    critic           target, loss and gradient of the critics
    score target     the estimator: candidates scored, with their gradients (DQS)
    policy           loss and gradient of the denoiser, or of SAC's policy and temperature
    optimizer        Adam and the target network

Lightning's loop and the replay buffer, the same for both, are left out (`overhead.py` measures them). The last line
holds name=value pairs.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import torch
from clock import Clock
from peers import ACTION, BATCH, OBSERVATION, batch
from torchrl.objectives import SACLoss, SoftUpdate
from update import PLAIN, PUBLISHED

from dqs_lightning.agents import DQS, SAC
from dqs_lightning.cli.provenance import about
from dqs_lightning.diffusion import MomentMatched, MultiStart, TargetScore
from dqs_lightning.envs import DMControl
from dqs_lightning.nn.critics import soft_update

PARTS = ("environment", "acting", "trajectories", "critic", "score target", "policy", "optimizer")
COLOURS = ("#999999", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#E69F00", "#CC79A7")
ROWS: dict[str, tuple[type[DQS | SAC], dict[str, Any]]] = {
    "SAC": (SAC, {}),
    "DQS, default: K = 8, 6 steps": (DQS, {}),
    "K = 4": (DQS, {"energy_estimator": MultiStart(4)}),
    "K = 16": (DQS, {"energy_estimator": MultiStart(16)}),
    "K = 32": (DQS, {"energy_estimator": MultiStart(32)}),
    "K = 64": (DQS, {"energy_estimator": MultiStart(64)}),
    "3 steps": (DQS, {"sampler": MomentMatched(3)}),
    "10 steps": (DQS, {"sampler": MomentMatched(10)}),
    "20 steps": (DQS, {"sampler": MomentMatched(20)}),
    "published, K = 100, 20 steps": (DQS, {"energy_estimator": TargetScore(100), **PUBLISHED}),
}


def dqs_update(agent: DQS, optimizer: torch.optim.Optimizer, data: Any, clock: Clock) -> None:
    """`DQS.training_step`, part by part; its one backward is two here, of the two graphs that share nothing."""
    temperature = agent.temperature()
    optimizer.zero_grad()
    with clock.part("trajectories"):
        observation = agent.observation_norm(data["observation"])
        following = agent.observation_norm(data["next", "observation"])
        here = observation[: agent.diffusion.training_states]
        at_next, at_here = agent.trajectories(*(agent.condition(seen, temperature) for seen in (following, here)))
    with clock.part("critic"):
        outputs = agent.critic.outputs(observation, data["action"])
        agent.critic_loss.loss(outputs, agent.critic_target(data, following, temperature, at_next)).backward()
    with clock.around(type(agent.diffusion), "estimate", "score target"), clock.part("policy"):
        loss, _ = agent.diffusion.loss(
            agent.log_prob(here, temperature),
            agent.condition(here, temperature),
            at_here,
            lambda: agent.diffusion.support.from_action(data["action"][: len(here)]),
        )
        loss.backward()
    with clock.part("optimizer"):
        optimizer.step()
        soft_update(agent.target_critic, agent.critic, agent.tau)


def sac_update(agent: SAC, optimizer: torch.optim.Optimizer, targets: SoftUpdate, data: Any, clock: Clock) -> None:
    """`SAC.learn`, part by part."""
    optimizer.zero_grad()
    with clock.around(SACLoss, "qvalue_v2_loss", "critic"), clock.part("policy"):
        found = agent.loss(data)
        (found["loss_actor"] + found["loss_alpha"]).backward()
    with clock.part("critic"):
        found["loss_qvalue"].backward()
    with clock.part("optimizer"):
        optimizer.step()
        targets.step()


class Row:
    """One agent with an environment of its own.

    Attributes:
        spent: seconds of each part, a dictionary a turn.
    """

    def __init__(self, cls: type[DQS | SAC], changes: dict[str, Any]) -> None:
        critic = PLAIN if cls is DQS else {}  # the same for both agents
        self.agent, self.data, self.clock = cls(OBSERVATION, ACTION, **{**critic, **changes}), batch(), Clock()
        optimizer = self.agent.configure_optimizers()
        self.update: Callable[[], None]
        if isinstance(self.agent, SAC):
            targets = self.agent._make_target_updater()
            self.update = partial(sac_update, self.agent, optimizer, targets, self.data, self.clock)
        else:
            self.update = partial(dqs_update, self.agent, optimizer, self.data, self.clock)
        self.env = DMControl("walker", "walk", action_repeat=2).make(1, seed=0)
        self.here = self.env.reset()
        self.spent: list[dict[str, float]] = []

    def __call__(self) -> None:
        """One environment step of a run."""
        self.clock.seconds.clear()
        with self.clock.part("acting"):
            self.here["action"] = self.agent(self.here["observation"])
        with self.clock.part("environment"):
            _, self.here = self.env.step_and_maybe_reset(self.here)
        self.update()
        self.spent.append(dict(self.clock.seconds))

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part that it has."""
        present = [part for part in PARTS if part in self.spent[-1]]
        return {part: 1e3 * statistics.median(spent[part] for spent in self.spent) for part in present}


def draw(table: dict[str, dict[str, float]], path: Path) -> None:
    """A bar a row, divided into its parts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["font.size"] = 14
    figure, axes = plt.subplots(figsize=(11, 5.6), layout="constrained")
    for part, colour in zip(PARTS, COLOURS, strict=True):
        left = [sum(row.get(p, 0) for p in PARTS[: PARTS.index(part)]) for row in table.values()]
        axes.barh(list(table), [row.get(part, 0) for row in table.values()], left=left, color=colour, label=part)
    for index, row in enumerate(table.values()):
        axes.text(sum(row.values()) + 0.7, index, f"{sum(row.values()):.0f}", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of one environment step with its update (ms)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS), frameon=False, fontsize=12, columnspacing=1)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="timed environment steps of each row")
    parser.add_argument("--brief", action="store_true", help="SAC and the default alone, ten turns")
    parser.add_argument("--out", type=Path, help="name of the files without their ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chosen = dict(list(ROWS.items())[:2]) if options.brief else ROWS
    rows = {name: Row(cls, changes) for name, (cls, changes) in chosen.items()}
    for _ in range(3 + (10 if options.brief else options.turns)):
        for row in rows.values():
            row()
    for row in rows.values():
        del row.spent[:3]  # memory is allocated, kernels are chosen
    table = {name: row.medians() for name, row in rows.items()}
    sac = sum(table["SAC"].values())
    print("| ms of an environment step | " + " | ".join(PARTS) + " | sum | against SAC |")
    print("|---" * (len(PARTS) + 3) + "|")
    for name, parts in table.items():
        cells = [f"{parts[part]:.2f}" if part in parts else "" for part in PARTS]
        print(f"| {name} | " + " | ".join(cells) + f" | {sum(parts.values()):.1f} | {sum(parts.values()) / sac:.2f} |")
    if options.out:
        content = {"median_ms": table, "turns": options.turns, "batch": BATCH, "about": about()}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        draw(table, options.out.with_suffix(".png"))
    default = table["DQS, default: K = 8, 6 steps"]
    print(f"sac_ms={sac:.2f} dqs_ms={sum(default.values()):.2f} ratio={sum(default.values()) / sac:.2f} "
          f"score_target_share={default['score target'] / sum(default.values()):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
