"""A non-finite value from any source stops the run before it reaches the replay, the weights or a checkpoint.

{NaN, +inf, -inf, 1e38} at {observation, reward, action, Q, target, score target, loss, gradient} x {1, 2 ranks} x
{DQS, SAC, PPO}, once, in one entry, on the last rank. Expected: exit code 3, a message that names the source, every
rank ended, the last checkpoint and its replay finite, and the same command without the fault continues to the
weights, replay and scores of an uninterrupted run. (A score target is DQS's alone; for PPO, Q is the state's value.)

    PYTHONPATH=benchmarks python -m faults.nonfinite --jobs 2
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from faults.compare import saved, unequal
from faults.hooks import MARKS, hook
from faults.poison import poison, poison_gradient
from faults.runs import FORKED, REAL
from faults.study import Cell, Lab, Outcome, main
from faults.tasks import RUN, arguments

VALUES = ("nan", "inf", "-inf", "1e38")
AGENTS = ("DQS", "SAC", "PPO")
DIVERGED, END_WITHIN_S = 3, 60.0
EVERY = ["--checkpoint.every_n_updates=4"]
ENVIRONMENT_STEP = "dqs_lightning.envs.navigation:PlaneBatch._step"
# In training, well after the first checkpoint and the first evaluation.
DATA: dict[str, dict[str, Any]] = {
    "observation": {"target": ENVIRONMENT_STEP, "key": "observation", "call": 110},
    "reward": {"target": ENVIRONMENT_STEP, "key": "reward", "call": 110},
    "action": {"target": "dqs_lightning.agents.base:Agent.forward", "call": 60},
}
SITES: dict[str, dict[str, dict[str, Any]]] = {
    "DQS": {
        **DATA,
        "action": {"target": "dqs_lightning.agents.dqs:DQS.forward", "call": 60},
        "Q": {"target": "dqs_lightning.nn.critics:CriticPair.outputs", "call": 40},
        "target": {"target": "dqs_lightning.agents.dqs:DQS.critic_target", "call": 22},
        "score target": {
            "target": "dqs_lightning.diffusion.estimators:EnergyEstimator.__call__", "key": "denoised", "call": 22,
        },
        "loss": {"target": "dqs_lightning.agents.dqs:DQS.losses", "key": 0, "call": 22, "add": True},
        "gradient": {"call": 22},
    },
    "SAC": {
        **DATA,
        "Q": {"target": "dqs_lightning.agents.twin:_Column.forward", "call": 60},
        "target": {"target": "torchrl.objectives.sac:SACLoss._compute_target_v2", "call": 22},
        "loss": {"target": "torchrl.objectives.sac:SACLoss.forward", "key": "loss_qvalue", "call": 22, "add": True},
        "gradient": {"call": 22},
    },
    "PPO": {
        **DATA,
        "Q": {"target": "dqs_lightning.nn.critics:FeedForward.forward", "call": 30, "width": 1},
        "target": {"target": "dqs_lightning.agents.ppo:PPO.prepare", "key": "value_target", "call": 5},
        "loss": {"target": "torchrl.objectives.ppo:ClipPPOLoss.forward", "key": "loss_critic", "call": 22, "add": True},
        "gradient": {"call": 22},
    },
}  # fmt: skip
NAMED = {
    "observation": r"\bobservation",
    "reward": r"\breward",
    "action": r"\baction",
    "Q": r"\bq\b|critic|target|td_error|value|advantage|loss",
    "target": r"target|td_error",
    "score target": r"score_target|score target",
    "loss": r"loss",
    "gradient": r"gradient",
}
"""How a message names the source. A Q enters several sums, of which the first that is checked is named."""


def cells(brief: bool) -> list[Cell]:
    """Lists all combinations, and one of them again as real processes; brief: two."""
    found = []
    for agent in AGENTS:
        for ranks in (1, 2):
            for site in SITES[agent]:
                for value in VALUES:
                    settings = {"agent": agent, "ranks": ranks, "site": site, "value": value}
                    found.append(Cell(f"{agent}/{ranks} rank{'s' * (ranks - 1)}/{site}/{value}", settings))
    if brief:
        return [cell for cell in found if cell.name in ("DQS/1 rank/reward/1e38", "PPO/1 rank/target/nan")]
    settings = {"agent": "DQS", "ranks": 2, "site": "reward", "value": "nan", "how": REAL}
    return [*found, Cell("DQS/2 ranks/reward/nan, real process", settings)]


def check(lab: Lab, place: Path, settings: dict[str, Any]) -> Outcome:
    agent, ranks, site, how = settings["agent"], settings["ranks"], settings["site"], settings.get("how", FORKED)
    argv = arguments("maze", agent, ranks, extra=EVERY)
    reference = lab.reference(f"nonfinite-{agent}-{ranks}", argv, ranks)
    function = poison_gradient if site == "gradient" else poison
    fault = hook(function, value=settings["value"], ranks=[ranks - 1], **SITES[agent][site])
    ended, err = lab.launcher.run(argv, place, limit_s=END_WITHIN_S, ranks=ranks, hooks=[fault], how=how)
    message = " ".join(err.split())[-300:]
    problems = [f"still running: {name}" for name in ended.left]
    if not (place / MARKS / f"poisoned-{ranks - 1}").exists():
        problems.append(f"the value was never put in: {message}")
    if ended.code != DIVERGED:
        problems.append(f"exit code {ended.code}, expected {DIVERGED}: {message}")
    elif not re.search(NAMED[site], "\n".join(line for line in err.splitlines() if "dqs-fit" in line), re.IGNORECASE):
        problems.append(f"the source is not named: {message}")
    if "Traceback" in err:
        problems.append(f"traceback: {message}")
    kept = saved(place / RUN)
    problems += [f"not finite in the checkpoint: {path}" for path in not_finite(kept)]
    again, err = lab.launcher.run(argv, place, ranks=ranks)
    if again.code != 0 or again.left:
        problems.append(f"without the fault the same command ended with {again}: {' '.join(err.split())[-300:]}")
    else:
        problems += [f"unequal: {name}" for name in unequal(reference / RUN, place / RUN)]
    observed = {"code": ended.code, "message": message[:200], "kept_at": kept["shared"]["global_step"]}
    return Outcome(problems, observed, how)


def not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of tensors with a NaN or an infinity in nested values."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from not_finite(entry, f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from not_finite(entry, f"{path}.{index}")
    elif isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
        yield path


if __name__ == "__main__":
    sys.exit(main("nonfinite", __doc__, cells, check))
