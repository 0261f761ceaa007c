"""Actors of a Ray cluster: frames are counted once, weights are young, and lost actors are replaced.

They need Ray, which is too large for the packages of the test session; `nox -s ray` runs them.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
from helpers import maze_data, small, trainer
from lightning.pytorch.loggers import CSVLogger

from dqs_callbacks.progress import Throughput
from dqs_lightning.agents import DQS, PPO, SAC, TD3, Agent
from dqs_lightning.collection.actors import RayBlocks, candidates
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.envs import EnvironmentFailure, Gym, Maze, MultiTask
from dqs_lightning.run.checkpoint import RunCheckpoint
from dqs_lightning.stop_signal import STOP

# Without Ray


@pytest.mark.parametrize("actors", [1, 2, 5])
@pytest.mark.parametrize("spare", [0, 3, 40])
def test_no_block_is_older_than_the_limit_in_whatever_order_blocks_become_ready(actors: int, spare: int) -> None:
    """An actor starts its next block when one is taken, before the updates; the slowest is waited for."""
    draw, updates = random.Random(actors + spare), 8
    limit = actors * updates + spare
    since, step, oldest = [0] * actors, 0, 0
    for _ in range(2_000):
        since.sort()
        most = candidates([step - start for start in since], updates, limit)
        assert 1 <= most <= actors
        taken = most - 1 if draw.random() < 0.7 else draw.randrange(most)
        oldest = max(oldest, step - since[taken])
        assert step - since[taken] <= limit
        since[taken] = step
        step += draw.randint(0, updates)
    assert oldest > updates * (actors - 1) / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 2}, "actors=2: needs collector=Ray"),
        ({"max_policy_age": 9}, "max_policy_age=9: needs collector=Ray"),
        ({"ray_address": "auto"}, "ray_address=auto: needs collector=Ray"),
        ({"collector": "Ray", "workers": 2}, "workers=2: must be 0 with collector=Ray; set actors"),
        ({"collector": "Ray", "actors": 3, "max_policy_age": 47}, "max_policy_age=47: must be >= 48"),
        ({"collector": "Ray", "actors": 0}, "actors=0: must be >= 1"),
        ({"collector": "Other"}, "collector=Other"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maze_data(**settings)


def test_agents_and_settings_that_need_the_order_of_time_or_ray_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="collector=Ray: must be Local for PPO, which is on-policy"):
        maze_data(collector="Ray").source(PPO(2, 2))
    with pytest.raises(ValueError, match="n_steps=32: must be < 32"):
        maze_data(n_steps=32, total_frames=1600, init_random_frames=48).source(DQS(2, 2))
    with pytest.raises(ValueError, match="collector=Ray: Ray is not installed; run pip install"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        maze_data(collector="Ray").source(DQS(2, 2))
    with pytest.raises(ValueError, match="n_steps=31: must be < 8"):
        data = maze_data(n_steps=31, total_frames=1600, init_random_frames=48, collector="Ray", actors=4)
        data.source(DQS(2, 2))


@pytest.mark.parametrize("agent", [DQS(2, 2), DQS(2, 2, best_of=3), SAC(2, 2, normalise_observations=True), TD3(2, 2)])
def test_the_acting_state_is_all_that_acting_needs(agent: Agent) -> None:
    other = type(agent)(**{name: value for name, value in agent.hparams.items() if not name.startswith("_")})
    sent = agent.acting_state()
    assert not any("target_" in name for name in sent)
    other.load_state_dict(sent, strict=False)
    observation, actions = torch.randn(5, 2), []
    for module in (agent, other):
        torch.manual_seed(3)
        actions.append(module(observation))
    torch.testing.assert_close(actions[0], actions[1], rtol=0, atol=0)
    assert any(name.startswith("critic.") for name in sent) == (isinstance(agent, DQS) and agent.best_of > 1)


# With Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head has no CPUs, and another node with two."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "dqs-lightning[sweep]"')
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield found
    found.shutdown()


@pytest.fixture
def node(cluster: Any) -> Iterator[Any]:
    added = cluster.add_node(num_cpus=2)
    yield added
    if added in cluster.worker_nodes:
        cluster.remove_node(added)


class Watched(L.Callback):
    """Keeps what the actors of a run do, and calls a function with them after each update."""

    def __init__(self, act: Callable[["Watched", int], None] = lambda watched, step: None) -> None:
        self.act, self.ages, self.nodes = act, [], set()
        self.blocks: RayBlocks | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        data = OnlineData.of(trainer)
        self.ages.append(data.policy_age)
        assert data._loader is not None
        self.blocks = data._loader.blocks
        self.act(self, trainer.global_step)


def remote_data(cluster: Any, **changes: Any) -> OnlineData:
    """Data of a pendulum, in which no state occurs twice."""
    arguments = {"collector": "Ray", "actors": 2, "ray_address": cluster.address, **changes}
    pendulum = {"environment": Gym("Pendulum-v1"), "total_frames": 1600, "init_random_frames": 160}
    return maze_data(**{**pendulum, **arguments})


def fit(folder: Path, data: OnlineData, callbacks: list[L.Callback], **changes: Any) -> tuple[L.Trainer, Agent]:
    agent = DQS(data.observation_dim, data.action_dim, **small((16, 16)))
    run = trainer(folder, callbacks, **changes)
    run.fit(agent, data)
    return run, agent


def check_frames(data: OnlineData, run: L.Trainer) -> None:
    """Checks that each frame is in the replay once, and that the ratio of updates to frames is that of the settings."""
    assert data._loader is not None
    rows = data._loader.source.buffer[:]
    assert data.env_frames == data.total_frames == len(rows)
    seen = torch.cat([rows["observation"], rows["action"], rows["next", "observation"]], -1)
    assert len(seen.unique(dim=0)) == len(rows)
    assert run.global_step == data.total_frames - data.init_random_frames


def no_actors_left() -> bool:
    until = time.monotonic() + 30
    while any(is_actor(process) for process in psutil.Process().children(recursive=True)):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def is_actor(process: psutil.Process) -> bool:
    try:
        return "ActorCollector" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_actors_on_another_node_collect_every_frame_once_with_young_weights(
    cluster: Any, node: Any, tmp_path: Path
) -> None:
    import ray

    places: set[str] = set()
    weights: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(watched: Watched, step: int) -> None:
        if step % 300 or watched.blocks is None:
            return
        for place in watched.blocks.places:
            found = place.actor.__ray_call__.remote(
                lambda actor: (ray.get_runtime_context().get_node_id(), actor.policy.module.agent.state_dict())
            )
            where, state = ray.get(found)
            places.add(where)
            weights.append((state["diffusion.denoiser.last.weight"], state["observation_norm.batches"]))

    watched = Watched(look)
    data = remote_data(cluster)
    run, _ = fit(tmp_path, data, [watched, Throughput()], log_every_n_steps=10, logger=CSVLogger(tmp_path))
    check_frames(data, run)
    assert places == {node.node_id}
    assert 0 < max(watched.ages) <= data.max_policy_age == 64
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "time/policy_age" in metrics.read_text().splitlines()[0]
    # The weights of an actor are those of an update at most `max_policy_age` before the present one.
    assert all(not torch.equal(one, weights[0][0]) for one, _ in weights[2:])
    assert all(int(batches) >= 300 * (index // 2 + 1) - 64 for index, (_, batches) in enumerate(weights))
    assert not ray.is_initialized() and no_actors_left()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_no_frame_is_lost_or_counted_twice_in_20_kills_of_an_actor(cluster: Any, node: Any, tmp_path: Path) -> None:
    import ray

    draw, killed = random.Random(0), []

    def kill(watched: Watched, step: int) -> None:
        if len(killed) == 20 or watched.blocks is None or step % 20:
            return
        living = [place.actor for place in watched.blocks.places if place.ready is None and place.actor not in killed]
        if living and step > 60 * len(killed):
            killed.append(draw.choice(living))
            ray.kill(killed[-1])

    data = remote_data(cluster, total_frames=3200)
    with pytest.warns(UserWarning, match="actor [01] was lost: .*; replaced, and its unfinished block is collected"):
        run, _ = fit(tmp_path, data, [watched := Watched(kill)])
    assert len(killed) == 20 and data.lost_actors == 20
    check_frames(data, run)
    assert max(watched.ages) <= data.max_policy_age
    assert no_actors_left()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_goes_on_without_a_node_that_is_removed_and_uses_one_that_is_added(cluster: Any, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    living: list[int] = []

    def change(watched: Watched, step: int) -> None:
        assert watched.blocks is not None
        living.append(sum(place.ready is None for place in watched.blocks.places))
        if step == 200:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
        if step == 800:
            nodes.append(cluster.add_node(num_cpus=1))

    data = remote_data(cluster, total_frames=3200)
    try:
        with pytest.warns(UserWarning, match=r"actor \d was lost: .*; replaced"):
            run, _ = fit(tmp_path, data, [Watched(change)])
    finally:
        for added in nodes:
            cluster.remove_node(added)
    check_frames(data, run)
    assert living[0] == 2 and min(living) == 1 and living[-1] == 2
    assert no_actors_left()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_stop_signal_is_followed_while_no_actor_lives(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STOP, "received", None)  # as it is again afterwards
    nodes, lost_at = [cluster.add_node(num_cpus=2)], []

    def lose(watched: Watched, step: int) -> None:
        if step == 100:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            lost_at.append(time.monotonic())
            threading.Timer(10, lambda: setattr(STOP, "received", signal.SIGTERM)).start()

    data = remote_data(cluster)
    with pytest.warns(UserWarning, match=r"actor \d was lost: .*; replaced"):
        run, _ = fit(tmp_path, data, [Watched(lose)])
    assert run.should_stop and data.env_frames < data.total_frames
    assert 10 < time.monotonic() - lost_at[0] < 120
    assert no_actors_left()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_with_actors_is_continued_by_another_number_of_them(cluster: Any, node: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoints")

    def stop(watched: Watched, step: int) -> None:
        if step == 500:
            assert watched.blocks is not None
            watched.blocks.data.trainer.should_stop = True

    fit(tmp_path, remote_data(cluster, n_steps=2), [Watched(stop), RunCheckpoint(folder)])
    data = remote_data(cluster, actors=1, n_steps=2)
    agent = DQS(data.observation_dim, data.action_dim, **small((16, 16)))
    run = trainer(tmp_path, [RunCheckpoint(folder)])
    run.fit(agent, data, ckpt_path=f"{folder}/last.ckpt", weights_only=True)
    assert data.env_frames == 1600 and run.global_step == 1440


@pytest.mark.ray
def test_too_few_free_cpus_are_refused_before_an_actor_starts(cluster: Any, node: Any, tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFailure, match=r"data\.actors=3: each needs a CPU, and the cluster has 2 that are free"
    ):
        fit(tmp_path, remote_data(cluster, actors=3), [])


@pytest.mark.ray
def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    data = maze_data(collector="Ray", ray_address="127.0.0.1:1")
    with pytest.raises(EnvironmentFailure, match=r"data\.ray_address=127\.0\.0\.1:1: Ray does not start: .*refused"):
        fit(tmp_path, data, [])


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ray_on_this_machine_is_started_and_ended_with_the_run(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    data = maze_data(collector="Ray", actors=2)
    fit(tmp_path, data, [])
    assert data.env_frames == 160 and not ray.is_initialized()
    assert no_actors_left() and os.getpid()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_actors_collect_equal_shares_of_several_tasks(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    tasks = MultiTask([Gym("Pendulum-v1", kwargs={"max_episode_steps": 5}), Maze()])
    arguments = {"total_frames": 320, "init_random_frames": 64, "batch_size": 16, "updates_per_step": 0.25}
    data = OnlineData(tasks, num_envs=4, steps_per_collect=4, collector="Ray", actors=2, **arguments)
    agent = DQS(data.observation_dim, data.action_dim, action_dims=data.action_dims, **small())
    trainer(tmp_path).fit(agent, data)
    observation = data.rank_state()["replay"]["observation"]
    assert data.env_frames == 320 == len(observation)
    assert torch.equal(observation[:, -2:].sum(0), torch.tensor([160.0, 160.0]))
