"""Runs on two nodes that torchrun or SLURM has started, with nothing else set. `nox -s nodes` runs them.

The nodes are network namespaces of this machine, so that root is needed.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from nodes.hosts import ADDRESSES, AVAILABLE, Hosts, two_hosts

from dqs_lightning.checkpoint.archive import safe_load
from dqs_lightning.cli.errors import RANK_LOST, STOPPED

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(not AVAILABLE, reason="needs root and network namespaces"),
]
ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests" / "ddp" / "two_ranks.py")
ARGUMENTS = [
    "--config", str(ROOT / "configs" / "cartpole.yaml"), "--trainer.accelerator=cpu", "--data.total_frames=2560",
    "--data.init_random_frames=1280", "--data.batch_size=16", "--model.critic_backbone.hidden=[16,16]",
    "--model.actor_backbone.hidden=[16,16]", "--model.energy_estimator.num_samples=4", "--model.sampler.steps=3",
    "--evaluate.every_frames=1280", "--evaluate.episodes=2",
]  # fmt: skip
LONG = ["--data.total_frames=1_000_000", "--checkpoint.every_n_updates=50", "--model.compile_losses=false"]
FOLDER = ["--run_dir=r", "--ckpt_path=auto"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as found:
        yield found


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k not in ("DQS_RUN_DIR", "LOCAL_RANK")}, "OMP_NUM_THREADS": "1"}


class Job:
    """One command on both nodes.

    Args:
        hosts: the nodes.
        folder: the shared working folder.
        arguments: of dqs-fit.
        each: processes of each node.
    """

    def __init__(self, hosts: Hosts, folder: Path, arguments: list[str], each: int = 1) -> None:
        self.folder = folder
        self.nodes = []
        for index in range(2):
            launcher = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={each}",
                f"--node-rank={index}", f"--master-addr={ADDRESSES[0]}", "--master-port=29517", SCRIPT,
            ]  # fmt: skip
            with (folder / f"node-{index}.txt").open("w") as out:
                self.nodes.append(hosts.start(index, [*launcher, *arguments], folder, environment(), out))

    @property
    def output(self) -> str:
        return "".join((self.folder / f"node-{index}.txt").read_text() for index in range(2))

    def ranks(self, index: int) -> list[psutil.Process]:
        """The training processes of a node."""
        children = psutil.Process(self.nodes[index].pid).children()
        return sorted((child for child in children if SCRIPT in child.cmdline()), key=lambda child: child.pid)

    def wait(self, timeout_s: float = 240) -> list[int]:
        """Returns the exit codes of both nodes' torchrun."""
        until = time.monotonic() + timeout_s
        return [node.wait(max(1.0, until - time.monotonic())) for node in self.nodes]

    def trains(self) -> None:
        """Waits until a checkpoint has been written in training."""
        until = time.monotonic() + 120
        while not (self.folder / "r" / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < until and all(node.poll() is None for node in self.nodes), self.output[-3000:]
            time.sleep(0.1)


def weights(folder: Path, ranks: int) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"weights-{rank}.pt") for rank in range(ranks)]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def whole(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of one process on each node."""
    folder = tmp_path_factory.mktemp("whole")
    job = Job(hosts, folder, [*ARGUMENTS, *FOLDER])
    assert job.wait() == [0, 0], job.output[-3000:]
    return folder / "r"


@pytest.mark.parametrize("each", [1, 2])
def test_nodes_agree_on_a_run_directory_and_on_the_weights(hosts: Hosts, tmp_path: Path, each: int) -> None:
    """Nothing else is set: neither the run directory, nor the numbers of devices and nodes."""
    job = Job(hosts, tmp_path, ARGUMENTS, each)
    assert job.wait() == [0, 0], job.output[-3000:]
    (run,) = (tmp_path / "runs" / "cartpole-swingup" / "dqs").iterdir()
    ranks = 2 * each
    first, *others = weights(run, ranks)
    assert all(equal(first, other) for other in others)
    last = safe_load(run / "checkpoints" / "last.ckpt")
    assert last["world_size"] == ranks and last["env_frames"] == 2560 and last["global_step"] == 640 // ranks
    stem = f"step={last['global_step']}-frames=2560"
    replays = [safe_load(run / "checkpoints" / f"{stem}-rank={rank}.pt")["replay"]["action"] for rank in range(ranks)]
    assert len({bytes(replay.numpy().tobytes()) for replay in replays}) == ranks
    rows = [json.loads(row) for row in (run / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[-1]["env_frames"] == 2560
    assert job.output.count(str(run.relative_to(tmp_path))) == 1


def test_a_signal_on_one_node_stops_both_and_the_run_continues_exactly(
    hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    arguments = [*ARGUMENTS, *FOLDER]
    job = Job(hosts, tmp_path, [*arguments, "--checkpoint.every_n_updates=20"])
    job.trains()
    job.ranks(1)[0].send_signal(signal.SIGTERM)
    codes = job.wait(90)
    assert 0 not in codes and f"exitcode  : {STOPPED}" in job.output  # torchrun's own code is 1
    stopped = safe_load(tmp_path / "r" / "checkpoints" / "last.ckpt")
    assert 0 < stopped["global_step"] < 320
    again = Job(hosts, tmp_path, arguments)
    assert again.wait() == [0, 0], again.output[-3000:]
    assert equal(weights(whole, 1)[0], weights(tmp_path / "r", 1)[0])


@pytest.mark.parametrize("lost", ["first", "other", "node"])
def test_when_a_rank_dies_the_others_end_and_the_run_continues(hosts: Hosts, tmp_path: Path, lost: str) -> None:
    job = Job(hosts, tmp_path, [*ARGUMENTS, *LONG, *FOLDER], each=2)
    job.trains()
    start = time.monotonic()
    if lost == "node":
        hit = job.ranks(1)
        job.nodes[1].kill()
        for rank in hit:
            rank.kill()
    else:
        job.ranks(0 if lost == "first" else 1)[0].kill()
    job.wait(60)
    assert time.monotonic() - start < 60
    assert job.output.count("dqs-fit: another rank has ended (") == 1, job.output[-3000:]
    before = safe_load(tmp_path / "r" / "checkpoints" / "last.ckpt")["global_step"]
    updates = [f"--trainer.max_steps={before + 60}"]
    again = Job(hosts, tmp_path, [*ARGUMENTS, *LONG, *FOLDER, *updates], each=2)
    again.wait()
    assert safe_load(tmp_path / "r" / "checkpoints" / "last.ckpt")["global_step"] == before + 60, again.output[-3000:]


def test_a_node_without_network_is_noticed_by_both(hosts: Hosts, tmp_path: Path) -> None:
    job = Job(hosts, tmp_path, [*ARGUMENTS, *LONG, *FOLDER])
    job.trains()
    start = time.monotonic()
    hosts.plug(False)
    try:
        job.wait(60)
    finally:
        hosts.plug(True)
    assert time.monotonic() - start < 60
    found = re.findall(r"dqs-fit: rank (\d)(?: on node-[ab])? has given no sign of life for 40 s", job.output)
    assert sorted(found) == ["0", "1"], job.output[-3000:]
    assert f"exitcode  : {RANK_LOST}" in job.output


def test_slurm_tasks_are_the_ranks(hosts: Hosts, whole: Path, tmp_path: Path) -> None:
    """The variables that srun sets in each of its tasks, and nothing else."""
    (tmp_path / "r").mkdir()
    tasks = []
    for index in range(2):
        variables = {
            "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "walker", "SLURM_NTASKS": "2", "SLURM_NNODES": "2",
            "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "node-[a,b]", "SLURM_PROCID": str(index),
            "SLURM_LOCALID": "0", "SLURM_NODEID": str(index),
        }  # fmt: skip
        command = [sys.executable, SCRIPT, *ARGUMENTS, *FOLDER]
        with (tmp_path / f"node-{index}.txt").open("w") as out:
            tasks.append(hosts.start(index, command, tmp_path, {**environment(), **variables}, out))
    assert [task.wait(240) for task in tasks] == [0, 0], (tmp_path / "node-0.txt").read_text()[-3000:]
    assert equal(weights(tmp_path / "r", 2)[0], weights(tmp_path / "r", 2)[1])
    assert equal(weights(tmp_path / "r", 1)[0], weights(whole, 1)[0])
