"""A sweep on a Ray cluster that loses a node: its run continues on another one. `nox -s ray` runs it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

MAZE = str(Path(__file__).parents[2] / "configs" / "maze.yaml")
OVERRIDES = [
    "model=SAC", "model.critic_backbone.hidden=[8]", "model.actor_backbone.hidden=[8]", "data.init_random_frames=64",
    "data.num_envs=8", "data.batch_size=8", "data.total_frames=24_000", "evaluate.every_frames=24_000",
    "evaluate.episodes=2", "checkpoint.every_n_updates=100",
]  # fmt: skip


def running() -> Iterator[psutil.Process]:
    return psutil.process_iter(["cmdline"])


def manifest(out: Path) -> dict[str, Any]:
    file = out / "manifest.json"
    runs: dict[str, Any] = json.loads(file.read_text())["runs"] if file.exists() else {}
    return runs


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shared", [True, False])
def test_runs_of_a_lost_node_continue_elsewhere(tmp_path: Path, shared: bool) -> None:
    """Where the folder of the run was on the disk of the node, the run starts anew, and the table says so."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "dqs-lightning[sweep]"')
    from ray.cluster_utils import Cluster

    content = {"config": MAZE, "seeds": [0, 1], "overrides": OVERRIDES, "variants": {"sac": []}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = [
            sys.executable,
            "-m",
            "dqs_lightning.cli.sweep",
            "s.yaml",
            f"--out={out}",
            f"--address={cluster.address}",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        sweep = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

        def wait_for(true: Any) -> None:
            until = time.monotonic() + 240
            while not true():
                assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
                time.sleep(0.1)

        wait_for(lambda: len(list(out.glob("*/sac/seed=*/checkpoints/last.ckpt"))) == 2)
        cluster.remove_node(nodes[0], allow_graceful=False)

        def lost() -> list[str]:
            return [name for name, row in manifest(out).items() if "its machine was lost (" in row["note"]]

        wait_for(lost)
        (name,) = lost()
        folder = out / name
        if not shared:
            wait_for(lambda: not any(str(folder) in " ".join(each.info["cmdline"] or []) for each in running()))
            shutil.rmtree(folder)
        cluster.add_node(num_cpus=1)
        output, _ = sweep.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert sweep.returncode == 0, output
    rows = manifest(out)
    assert [row["state"] for row in rows.values()] == ["done", "done"]
    became = "continued from its checkpoint" if shared else "started anew"
    assert rows.pop(name)["note"] == f"its machine was lost; {became}"
    assert [row["note"] for row in rows.values()] == [""]
    assert (folder / "log.txt").read_text().count("$ dqs-fit ") == 1 + shared
    assert became in output
