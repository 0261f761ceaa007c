"""Tests that memory is bounded: once the replay buffer is full, a run's memory does not grow with its updates."""

import gc
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from dqs_lightning.cli import run_dir
from dqs_lightning.cli.training import FitCLI

CARTPOLE = Path(__file__).parents[1] / "configs" / "cartpole.yaml"


class Held(L.Callback):
    """Counts live objects and bytes of tensors every `every` updates."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.objects, self.bytes = list[int](), list[int]()

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            alive = gc.get_objects()
            storages = [
                thing.untyped_storage()
                for thing in alive
                if type(thing) is torch.Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(thing)
            ]
            self.objects.append(len(alive))
            self.bytes.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))


@pytest.mark.slow
def test_objects_and_tensor_memory_of_a_run_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(run_dir.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", [
        "dqs-fit", f"--config={CARTPOLE}", f"--run_dir={tmp_path}", "--data.total_frames=3_200",
        "--data.init_random_frames=400", "--data.environment.action_repeat=4", "--data.batch_size=16",
        "--data.replay_size=200", "--model.critic_backbone.hidden=[16,16]", "--model.actor_backbone.hidden=[16,16]",
        "--model.energy_estimator.num_samples=4", "--model.sampler.steps=2", "--evaluate.every_frames=400",
        "--evaluate.episodes=2", "--checkpoint.every_n_updates=100", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    cli, held = FitCLI(), Held(100)
    cli.trainer.callbacks.append(held)
    assert cli.fit() == 0
    updates = 100 * (len(held.objects) - 2)
    assert updates == 400
    assert held.objects[-1] - held.objects[1] < updates / 2
    assert held.bytes[-1] - held.bytes[1] < updates
