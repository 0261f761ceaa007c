"""What critics learn of the order of a policy's actions, from the same transitions, while the policy stands still.

    python benchmarks/quality/frozen_policy.py runs/cheetah-run/... --out benchmarks/results/frozen_policy.json

A run of `dqs-fit` on the suite gives its replay buffer and its policy. Each variant's critics are learned from nothing
by the agent's own target and loss. They are then asked which of the policy's actions are the better ones, at states
that the policy meets. The answer is the simulator's: each action is tried from each state, the policy goes on, and the
run's own critics say what is left after h steps: A_h(s, a) = E[sum_t<h gamma^t r_t + gamma^h Q(s_h, a_h)], less its
mean over the actions. All actions of a state go on with the same noise.

`h2` is the correlation of Q(s, .) with A_2(s, .), a mean over states. It deviates by a half over states, so that 256 of
them tell it to 0.03; differences between variants more closely, since all are asked about the same states and actions.
`agreement` is the correlation of the two critics of a pair with each other, `deviation` that of Q over the actions. The
first row is the run's own critics. A row says how nearly critics solve Bellman's equation where it matters for the
actor, not how near they are to those of the best policy. The last line holds name=value pairs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import step_mdp

from dqs_lightning.agents import DQS, SquaredError, load_agent
from dqs_lightning.agents.backups import BestOf
from dqs_lightning.checkpoint.archive import checkpoint_of, load_run, safe_load
from dqs_lightning.cli.provenance import about, read_run
from dqs_lightning.cli.trust import restrict_imports
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.diffusion import MLP, AroundReplayActions, SimBa
from dqs_lightning.envs import Environment
from dqs_lightning.nn.critics import soft_update
from dqs_lightning.run.checkpoint import RunCheckpoint

MEMBERS, VISITS = 16, 16
"""Episodes that are walked, and states of each that are kept, evenly over the first 480 agent steps."""
HORIZONS = (1, 2, 5)


def variants() -> dict[str, dict[str, Any]]:
    """What differs from the default agent, by the name of a row; in all but the first, critics learn means."""
    changes: dict[str, dict[str, Any]] = {
        "squared_error": {},
        "step_3e-4": {"critic_lr": 3e-4},
        "step_2e-3": {"critic_lr": 2e-3},
        "step_3e-3": {"critic_lr": 3e-3},
        "three_layers": {"critic_backbone": MLP((256, 256, 256), layer_norm=True)},
        "wide": {"critic_backbone": MLP((512, 512), layer_norm=True)},
        "no_layer_norm": {"critic_backbone": MLP()},
        "simba": {"critic_backbone": SimBa(128, blocks=2)},
        "minimum": {"critic_reduction": "min"},
        "best_of_4": {"backup": BestOf(4)},
        "tau_0.005": {"tau": 0.005},
    }
    return {"default": {}} | {name: {"critic_loss": SquaredError(), **change} for name, change in changes.items()}


def load(run: Path) -> tuple[DQS, Environment, TensorDictBase, dict[str, Any]]:
    """Agent, environment and replayed transitions of a run, and where it comes from."""
    path = checkpoint_of(run)
    agent = load_agent(path)
    if not isinstance(agent, DQS):
        raise SystemExit(f"{run}: holds {type(agent).__name__}; must be DQS")
    environment = OnlineData.load_from_checkpoint(path).environment
    shared = load_run(path)
    own = safe_load(RunCheckpoint.rank_file(path.parent, shared["global_step"], shared["env_frames"], 0))
    replay = TensorDict.from_dict(own["replay"], auto_batch_size=True, batch_dims=1)
    begun = read_run(run)["starts"][0]
    origin = {"task": environment.name, "env_frames": shared["env_frames"], "updates": shared["global_step"]}
    return agent, environment, replay, origin | {key: begun[key] for key in ("commit", "command")}


@torch.no_grad()
def states_met(agent: DQS, environment: Environment) -> tuple[Tensor, list[dict[str, Any]]]:
    """Observations [S, o] that the policy meets, and the simulator's states there."""
    env = environment.make(MEMBERS, seed=1_000_000)
    tensordict, observations, simulators = env.reset(), [], []
    for step in range(30 * VISITS):
        tensordict["action"] = agent.act(tensordict["observation"])
        tensordict = step_mdp(env.step(tensordict))
        if step % 30 == 29:
            kept = env.snapshot()
            observations.append(kept["observation"])
            simulators += kept["envs"]
    return torch.cat(observations), simulators


@torch.no_grad()
def advantages(
    agent: DQS,
    environment: Environment,
    observation: Tensor,
    simulators: list[dict[str, Any]],
    action: Tensor,
    rollouts: int,
) -> Tensor:
    """A_h(s, a), [horizons, S, M], of actions [M, S, d] at observations [S, o]; a mean over `rollouts` of each."""
    num = len(action)
    walkers = num * rollouts
    env = environment.make(walkers, seed=0)
    rows = []
    for state, simulator in enumerate(simulators):
        env.restore({"observation": observation[state].repeat(walkers, 1), "envs": [simulator] * walkers})
        tensordict, tried = env.reset(), action[:, state].repeat_interleave(rollouts, 0)
        total, found = torch.zeros(walkers), []
        for step in range(1, max(HORIZONS) + 1):
            tensordict["action"] = tried
            stepped = env.step(tensordict)
            total = total + agent.discount ** (step - 1) * stepped["next", "reward"].squeeze(-1)
            tensordict = step_mdp(stepped)
            condition = agent.condition(agent.observation_norm(tensordict["observation"]), agent.temperature())
            tried = agent.diffusion.sample(
                condition,
                noise=lambda like: torch.randn(rollouts, like.shape[-1]).repeat(num, 1),  # the same for all actions
            )
            if step in HORIZONS:
                left = agent.discount**step * agent.q_value(tensordict["observation"], tried)
                found.append((total + left).view(num, rollouts).mean(1))
        rows.append(torch.stack(found))
    return torch.stack(rows, 1)


def learn(agent: DQS, replay: TensorDictBase, updates: int, batch_size: int = 256) -> None:
    """Critics alone, from batches of the buffer, as `training_step` would."""
    optimizer = torch.optim.Adam(agent.critic.parameters(), lr=agent.critic_lr, fused=True)
    for _ in range(updates):
        batch = replay[torch.randint(len(replay), (batch_size,))]
        observation = agent.observation_norm(batch["observation"])
        following, temperature = agent.observation_norm(batch["next", "observation"]), agent.temperature()
        at_next, _ = agent.trajectories(*(agent.condition(seen, temperature) for seen in (following, observation)))
        target = agent.critic_target(batch, following, temperature, at_next)
        outputs = agent.critic.outputs(observation, batch["action"])
        optimizer.zero_grad()
        agent.critic_loss.loss(outputs, target).backward()
        optimizer.step()
        soft_update(agent.target_critic, agent.critic, agent.tau)


def correlation(one: Tensor, other: Tensor) -> float:
    """Over actions [S, M], mean over states."""
    one, other = (value - value.mean(-1, keepdim=True) for value in (one, other))
    return F.cosine_similarity(one, other, dim=-1).mean().item()


@torch.no_grad()
def judge(agent: DQS, observation: Tensor, action: Tensor, truth: Tensor) -> dict[str, float]:
    """The figures of one row."""
    q = agent.q_value(observation, action).T
    pair = agent.critic(agent.observation_norm(observation), action).mT
    row = {f"h{horizon}": correlation(q, found) for horizon, found in zip(HORIZONS, truth, strict=True)}
    return row | {"agreement": correlation(*pair), "deviation": q.std(-1).mean().item()}


def main() -> None:
    """Make the table of advantages once, then learn and judge each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory of DQS on the suite")
    parser.add_argument("--variants", nargs="+", default=list(variants()), choices=list(variants()))
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--actions", type=int, default=6, help="of the policy, at each state")
    parser.add_argument("--rollouts", type=int, default=8, help="of each action")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write JSON; rows that it holds are not measured again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    restrict_imports([])
    known, environment, replay, origin = load(options.run)
    held = options.out and options.out.exists()
    results = json.loads(options.out.read_text()) if held else {"about": about(), "run": origin, "rows": {}}
    if results["run"] != origin:
        raise SystemExit(f"{options.out}: holds rows of another run, {results['run']}; must be another file")
    rows = results["rows"]

    torch.manual_seed(0)  # states, actions and noise are the same for every command
    observation, simulators = states_met(known, environment)
    action = known.sample(observation, options.actions)
    truth = advantages(known, environment, observation, simulators, action, options.rollouts)
    rows["run"] = judge(known, observation, action, truth)
    print(f"{environment.name}, {len(replay)} transitions, {len(simulators)} states; the run itself: {rows['run']}")
    for name in options.variants:
        key = f"{name}, {options.updates} updates, seed {options.seed}"
        if key in rows:
            continue
        torch.manual_seed(options.seed)
        started = time.process_time()
        agent = DQS(known.observation_dim, known.action_dim, **variants()[name])
        for part in ("diffusion", "observation_norm", "temperature"):
            setattr(agent, part, getattr(known, part))
        agent.diffusion.training_points = AroundReplayActions(states=1)  # the actor does not learn
        learn(agent, replay, options.updates)
        rows[key] = judge(agent, observation, action, truth)
        rows[key]["cpu_s"] = time.process_time() - started
        print(f"{key:40}", {figure: round(value, 3) for figure, value in rows[key].items()}, flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(" ".join(f"{key.replace(', ', '_').replace(' ', '_')}_h2={row['h2']:.3f}" for key, row in rows.items()))


if __name__ == "__main__":
    main()
