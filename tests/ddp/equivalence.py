"""Trains every agent on the same transitions, on one rank or two. Started by test_equivalence.py.

The argument is the number of ranks. Each rank receives its share of the rows of a batch.
Random numbers are those of the whole batch, of which a rank uses its rows, so that they do not depend on the number of
ranks.
"""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import small, trainer

from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent
from dqs_lightning.temperature import Relative, TargetEntropy, TargetESS

ROWS = 26
"""Of a whole batch; half of it is a prime number, by which the dimension of rows is recognised."""
UPDATES = 100
OBSERVATION_DIM, ACTION_DIM = 5, 3
Draw = Callable[..., Tensor]


class RowsOfTheWhole(TorchDispatchMode):
    """Replaces random numbers by the present rank's rows of those of the whole batch.

    Args:
        ranks: number of ranks.
        rank: the present one.
    """

    def __init__(self, ranks: int, rank: int) -> None:
        super().__init__()
        self.ranks, self.rank = ranks, rank
        self.generator = torch.Generator().manual_seed(0)

    def rows(self, shape: torch.Size, draw: Draw) -> Tensor:
        own, sizes = ROWS // self.ranks, list(shape)
        found = [dim for dim, size in enumerate(sizes) if size and size % own == 0]
        if not found:
            return draw(sizes, generator=self.generator, dtype=torch.float64)
        (dim,) = found
        groups = sizes[dim] // own
        whole = draw([*sizes[:dim], groups * ROWS, *sizes[dim + 1 :]], generator=self.generator, dtype=torch.float64)
        return whole.unflatten(dim, (groups, self.ranks, own)).select(dim + 1, self.rank).flatten(dim, dim + 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return out
        name = func.overloadpacket.__name__
        if name == "normal_":
            mean, std = [*args[1:], *(0.0, 1.0)[len(args) - 1 :]]
            return out.copy_(mean + std * self.rows(out.shape, torch.randn))
        if name in ("randn", "randn_like"):
            return out.copy_(self.rows(out.shape, torch.randn))
        if name in ("rand", "rand_like"):
            return out.copy_(self.rows(out.shape, torch.rand))
        if name == "normal":
            mean, std = args[:2]
            return out.copy_(mean + std * self.rows(out.shape, torch.randn))
        raise NotImplementedError(f"random numbers of {func}")


class OnSGD:
    """Mixin: plain SGD in place of Adam, which divides by gradients whose rounding differs."""

    random_numbers: RowsOfTheWhole

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = super().configure_optimizers().param_groups  # type: ignore[misc]
        return torch.optim.SGD([{"params": group["params"]} for group in groups], lr=0.01)

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        with self.random_numbers:
            super().training_step(self.ready(batch), batch_idx)  # type: ignore[misc]

    def ready(self, batch: TensorDict) -> TensorDict:
        return batch


class OnSGDFromRollouts(OnSGD):
    def ready(self, batch: TensorDict) -> TensorDict:
        return self.prepare(batch.unsqueeze(-1)).reshape(-1)  # type: ignore[attr-defined, no-any-return]


def made(cls: type[Agent], **arguments: Any) -> Agent:
    mixin = OnSGDFromRollouts if cls is PPO else OnSGD
    kind = type(cls.__name__, (mixin, cls), {})
    normalised = {"normalise_observations": True, "max_grad_norm": 0.5}
    return kind(OBSERVATION_DIM, ACTION_DIM, **small((16, 16)), **normalised, **arguments)


AGENTS: dict[str, Callable[[], Agent]] = {
    "DQS": lambda: made(DQS, inner_precision="float32", temperature=Relative(0.5)),
    "DQS, TargetEntropy": lambda: made(
        DQS, inner_precision="float32", actor_every=2, temperature=TargetEntropy(warmup=1, rate=0.05)
    ),
    "DQS, TargetESS": lambda: made(DQS, inner_precision="float32", temperature=TargetESS(warmup=1, rate=0.05)),
    "SAC": lambda: made(SAC, actor_every=2),
    "TD3": lambda: made(TD3),
    "PPO": lambda: made(PPO),
}


def whole_batches() -> list[TensorDict]:
    torch.manual_seed(1)
    found = []
    for _ in range(UPDATES):
        action = torch.rand(ROWS, ACTION_DIM) * 2 - 1
        terminated = torch.rand(ROWS, 1) < 0.1
        following = {
            "observation": 3 * torch.randn(ROWS, OBSERVATION_DIM) + 1,
            "reward": action.sum(-1, keepdim=True),
            "terminated": terminated,
            "truncated": torch.zeros_like(terminated),
            "done": terminated,
        }
        batch = {"observation": 3 * torch.randn(ROWS, OBSERVATION_DIM) + 1, "action": action, "next": following}
        found.append(TensorDict(batch, [ROWS]))
    return found


def main() -> int:
    folder, ranks, rank = Path.cwd(), int(sys.argv[1]), int(os.environ.get("LOCAL_RANK", "0"))
    torch.set_default_dtype(torch.float64)
    own = ROWS // ranks
    batches = [batch[rank * own : (rank + 1) * own] for batch in whole_batches()]
    for name, make in AGENTS.items():
        torch.manual_seed(2)
        agent = make()
        before = copy.deepcopy(agent.state_dict())
        OnSGD.random_numbers = RowsOfTheWhole(ranks, rank)
        run = trainer(folder, devices=ranks, max_steps=UPDATES, use_distributed_sampler=False)
        run.fit(agent, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
        assert run.global_step == UPDATES and run.world_size == ranks
        if rank == 0:
            torch.save({"before": before, "after": agent.state_dict()}, folder / f"{name}-{ranks}.pt")

    return 0


if __name__ == "__main__":
    sys.exit(main())
