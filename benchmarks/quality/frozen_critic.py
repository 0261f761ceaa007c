"""How near an actor comes to exp(Q/T) when the critic stands still: gap in return, without the noise of learning.

    python benchmarks/quality/frozen_critic.py --out benchmarks/results/frozen_critic.json

`quality/critics/` holds double critics and observations of runs of `dqs-fit` at commit c14e0dd: walker-walk after
5k and 17.5k agent steps (6 action dimensions), quadruped-walk after 17.5k (12). T is 0.05 of the spread (standard
deviation) of Q over uniform actions. The network alone is trained; gap = (E_reference Q - E_sample Q) / T over 64
observations, 0 is right and positive is too random. The reference is annealed Langevin (Metropolis-adjusted) with
resampling: 1000 temperatures, 64 chains an observation, weights exact (annealed importance sampling); it is run twice
to see its own error. 300 steps of annealed Langevin without weights end below it: the table gives that gap as well.

Every actor is trained as the default agent's is: 256 points an update, 64 states of four, with 8 candidates of each
point, scored in bfloat16 where the agent would; 3000 updates. The last line holds name=value pairs.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqs_lightning import diffusion as d
from dqs_lightning.cli.provenance import about
from dqs_lightning.nn.backbones import inner_dtype
from dqs_lightning.nn.critics import CriticPair

CRITICS = Path(__file__).parent / "critics"
DIMENSIONS = {"walker-walk-5k": 6, "walker-walk-17k": 6, "quadruped-walk-17k": 12}
"""Action dimensions."""
STATES = 64
"""Observations that are judged on; the others are trained on as well."""


CONFIGURATION = {"batch_size": 256, "K": 8}
"""As in an update of the default agent."""
REFERENCES = ((64, 1000, True, 100), (64, 1000, True, 100), (32, 300, False, 0))
"""Chains, temperatures, whether they are weighted, and further steps: the reference, the same again, a short run."""
BRIEF_REFERENCES = ((8, 20, True, 2),) * 2 + ((8, 10, False, 0),)


def variants() -> dict[str, dict[str, Any]]:
    """Components of `BoltzmannSampler` by the name of a row, and its batch size where that is another."""
    num = CONFIGURATION["K"]
    start = d.MultiStart(num)
    return {
        "default": {"energy_estimator": start},
        "guided_defensive": {"energy_estimator": d.GuidedDefensive(num)},
        "three_widths": {"energy_estimator": d.GuidedDefensive(num, widths=(1.0, 0.4, 0.15), gradient_steps=2)},
        "defensive": {"energy_estimator": d.Defensive(num)},
        "importance": {"energy_estimator": d.Importance(num)},
        "control_variate": {"energy_estimator": d.ControlVariate(num)},
        "target_score": {"energy_estimator": d.TargetScore(num)},
        "q_score": {"energy_estimator": d.QScore()},
        "posterior_mode": {"energy_estimator": d.PosteriorMode()},
        "resampling": {"energy_estimator": d.Resampling(num)},
        "32_states": {"energy_estimator": start, "batch_size": 128},
        "k32": {"energy_estimator": d.MultiStart(32)},
        "eight_points_a_state": {"energy_estimator": start, "training_points": d.OnTrajectory(points=8, levels=8)},
        # What the default owes to its parts.
        "not_pooled": {"energy_estimator": start, "training_points": d.OnTrajectory(points=1, levels=1)},
        "around_uniform_actions": {"energy_estimator": start, "training_points": d.AroundReplayActions(points=4)},
        "ancestral": {"energy_estimator": start, "sampler": d.Ancestral()},
    }


def load(name: str) -> tuple[CriticPair, Tensor, int]:
    """The critics, observations [1024, o], and the action dimension."""
    stored = torch.load(CRITICS / f"{name}.pt", weights_only=True)
    observation = stored["observation"].float()
    critic = CriticPair(observation.shape[1], DIMENSIONS[name])
    critic.load_state_dict({key: value.float() for key, value in stored["critic"].items()})
    critic.requires_grad_(False)
    return critic, observation, DIMENSIONS[name]


def spread(q: Callable[[Tensor, Tensor], Tensor], observation: Tensor, dim: int) -> float:
    """Standard deviation of Q over uniform actions, mean over observations."""
    return q(torch.rand(64, len(observation), dim) * 2 - 1, observation).std(0).mean().item()


def reference(
    energy: Callable[[Tensor], Tensor], laws: int, dim: int, chains: int, temperatures: int, weighted: bool, rest: int
) -> tuple[float, Tensor]:
    """Mean of the energy (in units of T) under exp(energy) on the box, and the chains [chains, laws, dim].

    Langevin steps with acceptance on exp(beta energy), beta from 0.005 to 1; between temperatures the chains are
    weighed by exp((beta' - beta) energy) and resampled where their effective number falls below a half.
    """

    def with_gradient(a: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            value = energy(a)
            return value.detach(), torch.autograd.grad(value.sum(), a)[0]

    a = torch.rand(chains, laws, dim) * 2 - 1
    value, gradient = with_gradient(a)
    log_weight, length = torch.zeros(chains, laws), torch.full((1, laws, 1), 0.2)
    betas = [0.0, *torch.logspace(-2.3, 0, temperatures).tolist(), *[1.0] * rest]
    for before, beta in pairwise(betas):
        if weighted:
            log_weight = log_weight + (beta - before) * value
            weight = torch.softmax(log_weight, 0)
            poor = 1 / weight.square().sum(0) < chains / 2
            ranks = (torch.arange(chains) + torch.rand(laws, 1)) / chains
            drawn = torch.searchsorted(weight.t().cumsum(1).contiguous(), ranks).clamp_max(chains - 1).t()
            keep = torch.where(poor, drawn, torch.arange(chains).unsqueeze(1))
            log_weight = torch.where(poor, 0.0, log_weight)
            value = value.gather(0, keep)
            a, gradient = (t.gather(0, keep.unsqueeze(-1).expand_as(t)) for t in (a, gradient))
        step = length * torch.exp(0.7 * torch.randn(chains, laws, 1))
        mean = a + step**2 / 2 * beta * gradient
        proposal = mean + step * torch.randn_like(mean)
        inside = (proposal.abs() <= 1).all(-1)
        proposal = proposal.clamp(-1, 1)
        new_value, new_gradient = with_gradient(proposal)
        back = proposal + step**2 / 2 * beta * new_gradient
        forth = (proposal - mean).square().sum(-1) - (a - back).square().sum(-1)
        log_accept = beta * (new_value - value) + forth / (2 * step.squeeze(-1) ** 2)
        accept = inside & (torch.rand(chains, laws).log() < log_accept)
        value = torch.where(accept, new_value, value)
        a, gradient = (
            torch.where(accept.unsqueeze(-1), new, old) for new, old in ((proposal, a), (new_gradient, gradient))
        )
        length = (length * torch.exp(0.1 * (accept.float().mean(0).view(1, -1, 1) - 0.5))).clamp(1e-3, 1)
    return (torch.softmax(log_weight, 0) * value).sum(0).mean().item(), a


def main() -> None:
    """Fit each actor on each critic and print its gap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critics", nargs="+", default=list(DIMENSIONS), choices=list(DIMENSIONS))
    parser.add_argument("--variants", nargs="+", default=list(variants()), choices=list(variants()))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--brief", action="store_true", help="one critic, five updates, short references")
    parser.add_argument("--warmth", type=float, default=0.05, help="T in units of the spread of Q")
    parser.add_argument("--out", type=Path, help="where to write JSON; what it holds already is not measured again")
    options = parser.parse_args()
    references = REFERENCES
    if options.brief:
        if options.out:
            parser.error("--out: must be left out with --brief")
        references, options.critics, options.updates = BRIEF_REFERENCES, options.critics[:1], 5
    torch.set_num_threads(1)
    results = (
        json.loads(options.out.read_text())
        if options.out and options.out.exists()
        else {"about": about() | CONFIGURATION}
    )
    for name in options.critics:
        critics, observation, dim = load(name)
        dtype = inner_dtype("auto", observation)
        q = partial(lambda action, state, critics: critics.value(state, action), critics=critics)
        torch.manual_seed(0)
        temperature = options.warmth * spread(q, observation, dim)
        judged = observation[:STATES]
        critic = results.setdefault(name, {"temperature": temperature})
        if "reference_q_over_t" not in critic:
            energy = partial(lambda a, q, s, t: q(a, s) / t, q=q, s=judged, t=temperature)
            critic["reference_q_over_t"], again, short = (
                reference(energy, STATES, dim, *settings)[0] for settings in references
            )
            critic["reference_repeated"] = critic["reference_q_over_t"] - again
            critic["short_langevin_gap"] = critic["reference_q_over_t"] - short
        print(
            f"{name}: T={temperature:.4f}, gap of a short Langevin run {critic['short_langevin_gap']:.1f} T", flush=True
        )
        each = judged.repeat_interleave(32, 0)
        for variant, seed in product(options.variants, range(options.seeds)):
            key = f"{variant}, {options.updates} updates, seed {seed}"
            if key in critic:
                continue
            torch.manual_seed(seed)
            started = time.process_time()
            components = variants()[variant]
            batch_size = components.pop("batch_size", CONFIGURATION["batch_size"])
            actor = d.BoltzmannSampler(dim, condition_dim=observation.shape[1], **components)
            actor.fit(
                lambda a, s: critics.bind(s, dtype)(a) / temperature,  # noqa: B023
                steps=options.updates,
                batch_size=batch_size,
                conditions=observation,
                progress=False,
            )
            row = {"cpu_s": round(time.process_time() - started, 1)}
            for steps in (5, 10, 20):
                samples = actor.sample(len(each), each, steps=steps)
                value = q(samples, each).mean().item() / temperature
                row[f"gap_{steps}_steps"] = round(critic["reference_q_over_t"] - value, 2)
            critic[key] = row
            print(f"{key:44} {row}", flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    gaps = {
        f"{name}_{key.replace(', ', '_').replace(' ', '_')}": row["gap_10_steps"]
        for name in options.critics
        for key, row in results[name].items()
        if isinstance(row, dict)
    }
    print(" ".join(f"{key}={value}" for key, value in gaps.items()))


if __name__ == "__main__":
    main()
