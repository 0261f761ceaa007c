"""The files of a run that `dqs-fit` and its callbacks write beside the checkpoint."""

import json
from pathlib import Path

from dqs_lightning.checkpoint.archive import safe_load

ROW = {"env_frames": 480, "return_mean": 20.0, "return_ci95": [19.0, 22.0], "episodes": 5}


def add_records(run: Path) -> None:
    (run / "scores.jsonl").write_text(f"{json.dumps(ROW)}\n")
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / "frames=480.mp4").write_bytes(b"film")
    config = safe_load(run / "checkpoints" / "last.ckpt")
    model = {"class_path": "DQS", "init_args": {"critic_lr": 0.5}}
    data = {"environment": config["datamodule_hyper_parameters"]["environment"], "total_frames": 480,
            "init_random_frames": 400}  # fmt: skip
    settings = {"model": model, "data": data, "evaluate": {"deterministic": True}}
    facts = {"task": "cartpole-swingup", "method": "dqs", "seed": 7, "starts": [{"command": ["dqs-fit"]}]}
    (run / "run.json").write_text(json.dumps({**facts, "settings": settings}))
