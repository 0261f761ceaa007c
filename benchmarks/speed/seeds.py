"""Updates a second of several agents whose networks are batched by torch.func.vmap, and of as many that take turns.

    python benchmarks/speed/seeds.py --out benchmarks/results/seeds.json
    python benchmarks/speed/seeds.py --device cuda --seeds 1 2 4 8 16 --out benchmarks/results/seeds_gpu.json

Losses, gradients and Adam of default agents at walker's sizes, each with its own weights, batch and random numbers.
`batched` stacks them, so that one kernel serves all seeds; `turns` makes one update of each after the other. Rates
count the updates of all seeds; times are wall times between synchronisations, medians, and the ratio is that of turns.
Before anything is timed, batched critic losses are compared with each agent's own on transitions that all end, where
no random number enters. The last line holds name=value pairs.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import ACTION, OBSERVATION, batch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from dqs_lightning.agents import DQS
from dqs_lightning.cli.provenance import about

TOLERANCE = 1e-4
"""Of a batched loss against the agent's own, relative."""


class Losses(nn.Module):
    """An agent's losses as a module, so that `functional_call` can put other weights into it."""

    def __init__(self, agent: DQS) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return self.agent.losses(data)


def adam(parameters: list[Tensor] | list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4, fused=True)


class Batched:
    """One update of all agents at once."""

    def __init__(self, agents: list[DQS], batches: TensorDict) -> None:
        modules = [Losses(agent) for agent in agents]
        self.parameters, self.buffers = stack_module_state(modules)
        skeleton = copy.deepcopy(modules[0]).to("meta")
        self.batches = batches
        self.learned = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self.optimizer = adam(list(self.learned.values()))

        def loss(
            learned: dict[str, Tensor], state: dict[str, Tensor], data: TensorDictBase
        ) -> tuple[Tensor, dict[str, Tensor]]:
            found: tuple[Tensor, dict[str, Tensor]] = functional_call(skeleton, {**state, **learned}, (data,))
            return found

        self.gradients = vmap(grad_and_value(loss, has_aux=True), randomness="different")

    def losses(self) -> dict[str, Tensor]:
        """Of each agent, [S], with all gradients in place."""
        fixed = {name: value.detach() for name, value in self.parameters.items() if name not in self.learned}
        learned = {name: value.detach() for name, value in self.learned.items()}
        metrics: dict[str, Tensor]
        gradients, (_, metrics) = self.gradients(learned, {**fixed, **self.buffers}, self.batches)
        for name, value in self.learned.items():
            value.grad = gradients[name]
        return metrics

    def __call__(self) -> None:
        self.losses()
        self.optimizer.step()


class Turns:
    """One update of each agent after the other."""

    def __init__(self, agents: list[DQS], batches: TensorDict) -> None:
        self.agents, self.batches = agents, batches
        self.optimizers = [adam([p for p in agent.parameters() if p.requires_grad]) for agent in agents]

    def __call__(self) -> None:
        for agent, optimizer, data in zip(self.agents, self.optimizers, self.batches.unbind(0), strict=True):
            agent.zero_grad()
            agent.losses(data)[0].backward()
            optimizer.step()


def measure(num: int, device: str, turns: int, updates: int) -> dict[str, float]:
    """Updates a second of `num` agents both ways, and the ratio."""
    agents = [DQS(OBSERVATION, ACTION).to(device) for _ in range(num)]
    batches: TensorDict = TensorDict.stack([batch().to(device) for _ in agents])
    ended = batches.clone()
    ended["next", "terminated"] = torch.ones_like(ended["next", "terminated"])
    found = Batched(agents, ended).losses()["critic_loss"]
    expected = torch.stack([agent.losses(data)[1]["critic_loss"] for agent, data in zip(agents, ended, strict=True)])
    if not torch.allclose(found, expected, rtol=TOLERANCE):
        raise ValueError(f"critic losses are {found.tolist()} batched and {expected.tolist()} alone")
    ways: dict[str, Callable[[], None]] = {
        "batched": Batched(copy.deepcopy(agents), batches),
        "turns": Turns(agents, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 2):
        for name, update in ways.items():
            start = time.perf_counter()
            for _ in range(updates):
                update()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: num * updates / statistics.median(taken) for name, taken in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds["batched"], seconds["turns"], strict=True))
    return {**rates, "ratio": ratio}


def main() -> None:
    """Check, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each way")
    parser.add_argument("--brief", action="store_true", help="three turns: half a minute")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    updates = 4 if options.device == "cpu" else 50
    rows = {}
    print(f"{'seeds':>6} {'batched /s':>11} {'turns /s':>9} {'ratio':>6}")
    for num in options.seeds:
        rows[num] = row = measure(num, options.device, 3 if options.brief else options.turns, updates)
        print(f"{num:6} {row['batched']:11.1f} {row['turns']:9.1f} {row['ratio']:6.2f}")
    if options.out:
        options.out.write_text(json.dumps({"updates_per_s": rows, "about": about()}, indent=2) + "\n")
    print(" ".join(f"ratio_at_{num}={row['ratio']:.2f}" for num, row in rows.items()))


if __name__ == "__main__":
    main()
