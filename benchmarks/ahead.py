"""Updates a second of wall time when the next block is collected beside the updates, and when it is collected between.

    python benchmarks/ahead.py --out benchmarks/results/ahead.json
    python benchmarks/ahead.py --device cuda --out benchmarks/results/ahead_gpu.json

Two runs of walker-walk take turns in one process: `data.asynchronous=false` and `true`, the default agent, 8
environments, one update for each agent step and a quarter of one. A turn is `TURN` updates with the collection that
goes with them, replay buffer and all, without Lightning's loop. Figures are medians over turns, ratios those of turns;
two processes want two free cores. `policy_age` is the updates that the policy lacked. The last line holds name=value
pairs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

import torch
from provenance import about

from dqs_lightning.agents import DQS
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.collection.loader import OnlineLoader
from dqs_lightning.envs import DMControl
from dqs_lightning.nn.critics import soft_update

TURN = 64
"""Updates of a contender's turn: whole blocks."""
RATIOS = (1.0, 0.25)


def contender(asynchronous: bool, updates_per_step: float, device: str) -> Iterator[int | None]:
    """Each `next` makes `TURN` updates; gives the policy's age."""
    data = OnlineData(
        DMControl("walker", "walk"),
        total_frames=10**8,
        num_envs=8,
        init_random_frames=2_048,
        replay_size=100_000,
        updates_per_step=updates_per_step,
        asynchronous=asynchronous,
    )
    agent = DQS(data.observation_dim, data.action_dim).to(device)
    optimizer = agent.configure_optimizers()
    loader = OnlineLoader(data, agent, rank=0, world_size=1)
    for count, batch in enumerate(loader, 1):
        optimizer.zero_grad()
        loss, _ = agent.losses(batch.to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
        soft_update(agent.target_critic, agent.critic, agent.tau)
        if count % TURN == 0:
            yield loader.policy_age


def main() -> None:
    """Let the contenders take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each contender")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--brief", action="store_true", help="three turns: a minute")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {}
    print(f"{'updates a step':>15} {'between /s':>11} {'beside /s':>10} {'ratio':>6} {'policy_age':>11}")
    for ratio in RATIOS:
        contenders = {name: contender(name == "beside", ratio, options.device) for name in ("between", "beside")}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        age = None
        for turn in range((3 if options.brief else options.turns) + 2):
            for name, running in contenders.items():
                start = time.perf_counter()
                age = next(running) if name == "beside" else next(running) or age
                if options.device != "cpu":
                    torch.cuda.synchronize()
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - start)
        for running in contenders.values():
            running.close()  # type: ignore[attr-defined]  # a generator
        rate = {name: TURN / statistics.median(taken) for name, taken in seconds.items()}
        gain = statistics.median(a / b for a, b in zip(seconds["between"], seconds["beside"], strict=True))
        rows[str(ratio)] = {"updates_per_s": rate, "ratio": gain, "policy_age": age}
        print(f"{ratio:15} {rate['between']:11.1f} {rate['beside']:10.1f} {gain:6.2f} {age:11}")
    if options.out:
        options.out.write_text(json.dumps({"updates_per_step": rows, "about": about()}, indent=2) + "\n")
    print(" ".join(f"ratio_at_{name}={row['ratio']:.2f}" for name, row in rows.items()))


if __name__ == "__main__":
    main()
