"""What one full update of DQS costs, by estimator and K: walker sizes, one thread, medians and ratios of one run.

    python benchmarks/update.py --updates 40 --out benchmarks/results/update.json

The variants take turns, so that a machine that slows down slows all of them. The last line holds name=value pairs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from provenance import about
from tensordict import TensorDict

from dqs_lightning.agents import DQS
from dqs_lightning.diffusion import (
    AroundActions,
    EulerMaruyama,
    GuidedDefensive,
    Importance,
    MultiStart,
    PosteriorMode,
    RawScore,
    TargetScore,
)
from dqs_lightning.networks import soft_update

OBSERVATION, ACTION, BATCH = 24, 6, 256
DEFAULT = "default_k8"
VARIANTS: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "k16": {"energy_estimator": MultiStart(16)},
    "guided_defensive_k16": {"energy_estimator": GuidedDefensive(16)},
    "importance_k16": {"energy_estimator": Importance(16)},
    "posterior_mode": {"energy_estimator": PosteriorMode()},
    # The paper's estimator at one noised action a state, with 20 steps.
    "published_k100": {
        "energy_estimator": TargetScore(100),
        "noised_points": AroundActions(),
        "preconditioning": RawScore(),
        "sampler": EulerMaruyama(20),
    },
}


def batch() -> TensorDict:
    """One batch of made-up transitions of walker's sizes."""
    following = TensorDict(
        {
            "observation": torch.randn(BATCH, OBSERVATION),
            "reward": torch.rand(BATCH, 1),
            "terminated": torch.zeros(BATCH, 1, dtype=torch.bool),
        },
        [BATCH],
    )
    action = torch.rand(BATCH, ACTION) * 2 - 1
    return TensorDict({"observation": torch.randn(BATCH, OBSERVATION), "action": action, "next": following}, [BATCH])


class Step:
    """The arithmetic of `DQS.training_step`, without a Trainer around it."""

    def __init__(self, components: dict[str, object]) -> None:
        self.agent = DQS(OBSERVATION, ACTION, **components)  # type: ignore[arg-type]
        self.optimizer = self.agent.configure_optimizers()
        self.batch = batch()

    def __call__(self) -> None:
        """One update."""
        agent, temperature = self.agent, self.agent.temperature()
        at_next, at_here = agent.paths(self.batch)
        q_values = agent.critic(self.batch["observation"], self.batch["action"])
        target = agent.critic_target(self.batch, temperature, at_next)
        loss = (q_values - target).square().mean() + agent.score_loss(self.batch, temperature, at_here)[0]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        soft_update(agent.target_critic, agent.critic, agent.tau)


def main() -> None:
    """Time the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=40, help="timed updates of each variant")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = {name: Step(components) for name, components in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.updates + 3):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn >= 3:
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians[DEFAULT]
    print(f"{'variant':24} {'ms':>8} {'updates/CPU-s':>14} {'cost / default':>15}")
    for name, median in medians.items():
        print(f"{name:24} {median * 1e3:8.1f} {1 / median:14.1f} {median / base:15.2f}")
    if options.out:
        options.out.write_text(
            json.dumps({"median_s": medians, "updates": options.updates, "about": about()}, indent=2) + "\n"
        )
    print(" ".join(f"{name}_updates_per_cpu_s={1 / median:.2f}" for name, median in medians.items()))


if __name__ == "__main__":
    main()
