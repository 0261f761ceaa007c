"""The least that an update of DQS costs: the operations of its matrix products, and this machine's rate of them.

    python benchmarks/speed/floor.py

A product of [m, k] and [k, n] counts 2 m k n operations. Counted is every product of a network in `DQS.training_step`:
forward, and backward to weights and to inputs where a gradient goes. Not counted: what is elementwise (activations,
densities of proposals, random numbers, Adam) and what the temperature measures. scaling.py compares the sum with
torch's own counter.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dqs_lightning.agents import DQS
from dqs_lightning.agents.backups import BestOf, ExpectedQ, MixtureBackup, SoftPolicyValue
from dqs_lightning.diffusion import MLP
from dqs_lightning.nn.backbones import inner_dtype


class Product(NamedTuple):
    """`times` products of activations [rows, inputs] with weights [inputs, outputs], or of these sizes in backward."""

    part: str
    rows: float
    inputs: int
    outputs: int
    times: float = 1
    short: bool = False
    """In the agent's inner precision."""

    @property
    def operations(self) -> float:
        return 2 * self.rows * self.inputs * self.outputs * self.times


def products(agent: DQS, batch_size: int) -> Iterator[Product]:
    """Every product of one update, in no order.

    Raises:
        TypeError: for a backup that is not known here.
    """
    o, d = agent.observation_dim, agent.action_dim
    critic, backup, diffusion = agent.critic.members[0], agent.backup, agent.diffusion
    denoiser, points = diffusion.denoiser, diffusion.training_points
    assert isinstance(critic.backbone, MLP)
    hidden = critic.backbone.hidden
    states = min(points.states or batch_size, batch_size) / agent.actor_every  # of one update, on average

    def layers(
        part: str, rows: float, ends: tuple[int, int], times: float = 1, short: bool = False
    ) -> Iterator[Product]:
        """One pass through a network that takes ends[0] inputs and gives ends[1] outputs."""
        yield Product(part, rows, ends[0], hidden[0], times)
        yield from (Product(part, rows, a, b, times, short) for a, b in pairwise(hidden))
        yield Product(part, rows, hidden[-1], ends[1], times)

    def backward(part: str, rows: float, last: int, times: float = 1) -> Iterator[Product]:
        """To the inputs of every layer but the first."""
        yield from (Product(part, rows, b, a, times) for a, b in pairwise(hidden))
        yield Product(part, rows, last, hidden[-1], times)

    # Trajectories: the condition's share of the first layer once, the noise's for one row a step.
    rows = batch_size * backup.policy_actions + states * points.trajectories
    steps = diffusion.sampler.steps
    yield Product("paths", rows, denoiser.condition_dim, hidden[0])
    yield Product("paths", 1, denoiser.embedding, hidden[0], steps)
    yield from layers("paths", rows, (d, 2 * d), steps, short=True)

    # The critics: forward, gradients of the weights (as many operations), gradients of the inputs.
    outputs = agent.critic_loss.outputs
    yield from layers("critic", batch_size, (o + d, outputs), times=2 * 2)
    yield from backward("critic", batch_size, outputs, times=2)

    # The target: evaluations of the target critics a state, of which a gradient in the action is a second.
    if isinstance(backup, ExpectedQ | BestOf | SoftPolicyValue):
        evaluations = backup.policy_actions
    elif isinstance(backup, MixtureBackup):
        climbing = backup.clip is not None and backup.policy_actions > 0
        evaluations = backup.num_candidates + 2 * climbing * backup.policy_actions
        yield from (Product("target", batch_size, a, b, times=2) for a, b in pairwise(hidden))
    else:
        raise TypeError(f"{type(backup).__name__}: its evaluations of the target critics are not known")
    yield Product("target", batch_size, o, hidden[0], times=2)
    last = 1 if backup.weighs_candidates else outputs
    yield from layers("target", batch_size * evaluations, (d, last), times=2, short=backup.weighs_candidates)
    if backup.weighs_candidates:  # the outputs at the policy's actions, which otherwise are the evaluations
        yield from layers("target", batch_size, (o + d, outputs), times=2 * agent.critic_loss.policy_actions)

    # The estimator: critics bound to the states, candidates scored, and gradients in the action.
    all_evaluations = diffusion.energy_estimator.cost(points.points)
    candidates = min(all_evaluations, diffusion.energy_estimator.num_samples * points.points)
    yield Product("scoring", states, o, hidden[0], times=2)
    yield from (Product("scoring", states, a, b, times=2) for a, b in pairwise(hidden))
    yield from layers("scoring", states * candidates, (d, 1), times=2, short=True)
    yield from layers("gradients", states * (all_evaluations - candidates), (d, 1), times=2, short=True)

    # The denoiser: forward and gradients of the weights, then gradients of the inputs.
    rows = states * points.points
    yield Product("denoiser", states, denoiser.condition_dim, hidden[0], times=2)
    yield from layers("denoiser", rows, (denoiser.embedding + d, 2 * d), times=2)
    yield from backward("denoiser", rows, 2 * d)


def count(agent: DQS, batch_size: int) -> dict[str, float]:
    """Operations of one update by part; their sum is all of them.

    `paths`: the sampler's trajectories; `critic` and `denoiser`: forward and backward of what is trained; `target`: the
    target critics; `scoring`: Q of the candidates; `gradients`: what guided candidates and climbs add to that.
    """
    operations: defaultdict[str, float] = defaultdict(float)
    for product in products(agent, batch_size):
        operations[product.part] += product.operations
    return dict(operations)


def by_dtype(agent: DQS, batch_size: int) -> dict[str, float]:
    """The same operations, by the type in which they are multiplied."""
    short = str(inner_dtype(agent.inner_precision, next(agent.critic.parameters()))).removeprefix("torch.")
    operations = {"float32": 0.0, short: 0.0}
    for product in products(agent, batch_size):
        operations[short if product.short else "float32"] += product.operations
    return operations


def touched(agent: DQS, batch_size: int) -> dict[str, float]:
    """Bytes of one update. `weights`: parameters, gradients, Adam's two moments and the target critics, once each;
    `activations`: the inputs and outputs of every product, once each, in the type in which it is multiplied."""
    size = {True: inner_dtype(agent.inner_precision, next(agent.critic.parameters())).itemsize, False: 4}
    critic, denoiser = (sum(p.numel() for p in net.parameters()) for net in (agent.critic, agent.diffusion))
    activations = sum(p.rows * (p.inputs + p.outputs) * p.times * size[p.short] for p in products(agent, batch_size))
    return {"weights": 4.0 * (4 * (critic + denoiser) + critic), "activations": activations}


def matrix_rate(turns: int = 15, rows: int = 512, width: int = 256) -> dict[str, float]:
    """Operations per CPU-second of products of [rows, width] with [width, width], by type, medians of turns.

    On as many threads as torch was told, in process CPU time: with several threads, of all of them together.
    """
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    operands = {
        name: (torch.randn(rows, width, dtype=getattr(torch, name)), torch.randn(width, width).to(getattr(torch, name)))
        for name in seconds
    }
    repeats = 20
    with torch.no_grad():
        for turn in range(-2, turns):
            for name, (x, weight) in operands.items():
                start = time.process_time()
                for _ in range(repeats):
                    F.linear(x, weight)
                if turn >= 0:
                    seconds[name].append(time.process_time() - start)
    return {name: repeats * 2.0 * rows * width**2 / statistics.median(values) for name, values in seconds.items()}


def least_seconds(agent: DQS, batch_size: int, rate: dict[str, float]) -> float:
    """What the products alone would take at these rates, by type."""
    return sum(operations / rate[name] for name, operations in by_dtype(agent, batch_size).items())


def main() -> None:
    """Print the count of the default agent at walker's sizes, and the rates."""
    torch.set_num_threads(1)
    agent, batch_size = DQS(24, 6), 256
    for part, operations in count(agent, batch_size).items():
        print(f"{part:12} {operations / 1e6:10.1f} million operations")
    print(" ".join(f"{name}_bytes={value:.0f}" for name, value in touched(agent, batch_size).items()))
    rate = matrix_rate()
    print(" ".join(f"{name}_operations_per_s={value:.4g}" for name, value in rate.items()))


if __name__ == "__main__":
    main()
