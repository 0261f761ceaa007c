"""`dqs-export`: write a trained policy as one graph, ONNX or a torch.export package, to act without this library.

The graph maps `observation` [batch, o] and `noise` [draws, batch, d], the standard normals in the order in which the
sampler draws them, to `action` [batch, d]. The temperature is a constant, that of the checkpoint. best_of > 1 is not
exported: run the graph with several noises, and rank the actions with the critic where there is one.
"""

import argparse
import copy
import importlib.util
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from dqs_lightning.agents import DQS, Agent, load_agent
from dqs_lightning.checkpoint.archive import load_run
from dqs_lightning.cli.errors import DONE, InputError, refusing, reported
from dqs_lightning.cli.evaluate import TRUST_HELP, existing_checkpoint
from dqs_lightning.cli.files import existing_folder
from dqs_lightning.cli.machine import latencies, set_threads
from dqs_lightning.cli.trust import restrict_imports
from dqs_lightning.diffusion import EnergyDiffusion
from dqs_lightning.diffusion.samplers import Noise

TOLERANCE = 1e-5
"""Largest difference from the agent itself, in units of the action, with which a graph is kept."""

Act = Callable[..., Tensor]
"""(observation [batch, o], and noise [draws, batch, d] unless draws is 0) -> action [batch, d]."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-export", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run_or_ckpt", type=Path, help="a run directory, or a checkpoint file")
    parser.add_argument("--out", type=Path, required=True, help="the file; its suffix decides: .onnx or .pt2")
    parser.add_argument("--deterministic", action="store_true", help="the noise-free policy; it takes no noise")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)
    return parser.parse_args(arguments)


def check_target(out: Path) -> Path:
    """Returns the deepest existing folder above `out`; refuses what is no file to write, and missing packages."""
    if out.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--out={out}: must be a file that ends in .onnx or .pt2")
    there = existing_folder(f"--out={out}", out.parent)
    with refusing(f"--out={out}: ", OSError):
        if out.is_dir():
            raise InputError(f"--out={out}: is a directory; must be a file")
        if out.exists() and not out.is_file():
            raise InputError(f"--out={out}: is no regular file")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise InputError(f'--out={out}: needs {", ".join(missing)}; run pip install "dqs-lightning[export]"')
    return there


class Policy(nn.Module):
    """The denoising loop of an agent with its random numbers as an input; deterministic: without noise.

    The diffusion is copied; the temperature is read when the graph is traced.
    """

    def __init__(self, agent: DQS, deterministic: bool = False) -> None:
        super().__init__()
        # A module of the diffusion alone: with the agent as a member the file would contain the critics too.
        self.diffusion = copy.deepcopy(agent.diffusion).requires_grad_(False)
        self.agent = [agent]  # in a list, so that it is not a submodule
        self.observation_dim, self.action_dim = agent.observation_dim, agent.action_dim
        self.deterministic = deterministic
        self.draws = 0  # standard normals of one sample, the start among them; 0 where deterministic

        def count(like: Tensor) -> Tensor:
            self.draws += 1
            return torch.zeros_like(like)

        self._sample(torch.zeros(1, self.observation_dim), count)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns actions [batch, d] for observations [batch, o] and noise [draws, batch, d]."""
        draws = iter(() if noise is None else noise.unbind(0))
        return self._sample(observation, lambda like: next(draws))

    def _sample(self, observation: Tensor, noise: Noise) -> Tensor:
        (agent,) = self.agent
        condition = agent.condition(agent.observation_norm(observation), agent.temperature())
        return self.diffusion.sample(condition, noise=None if self.deterministic else noise)

    def noise(self, batch: int) -> tuple[Tensor, ...]:
        """Returns noise [draws, batch, d] as the only member, drawn as the sampler does; none if deterministic."""
        draws = [torch.randn(batch, self.action_dim) for _ in range(self.draws)]
        return (torch.stack(draws),) if draws else ()

    def facts(self) -> dict[str, str]:
        """Returns the file's metadata. The bounds are the images of -inf and inf, for every support."""
        low, high = self.diffusion.support.to_action(torch.tensor([-torch.inf, torch.inf])).tolist()
        return {"dqs_lightning": version("dqs-lightning"), "action_low": str(low), "action_high": str(high)}


def write(policy: Policy, path: Path, facts: dict[str, str]) -> None:
    """Traces the policy for any batch size and writes it in the format of the path's suffix, with facts as metadata."""
    batch = torch.export.Dim("batch")
    inputs = (torch.randn(2, policy.observation_dim), *policy.noise(2))  # 2: a size of 1 could be taken for a constant
    shapes = ({0: batch}, {1: batch})[: len(inputs)]
    program = torch.export.export(policy, inputs, dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={"facts.json": json.dumps(facts)})
        return
    import onnx

    exported = torch.onnx.export(
        program, dynamo=True, output_names=["action"], dynamic_shapes=shapes, verbose=False, external_data=False
    )
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)


def load(path: Path) -> Act:
    """Returns the policy in a file that `write` wrote, on as many threads as torch has.

    Only for files that you trust: a `.pt2` holds expressions that `torch.export.load` evaluates as code.
    """
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def act(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return act


def difference(act: Act, policy: Policy, agent: Agent, batch: int) -> float:
    """Returns the largest difference of one number from the action of the agent with the same random numbers."""
    observation = torch.randn(batch, policy.observation_dim)
    state = torch.get_rng_state()
    expected = agent.act(observation, policy.deterministic, best_of=1)
    torch.set_rng_state(state)  # the agent draws for itself; the same numbers are drawn again
    return (act(observation, *policy.noise(batch)) - expected).abs().max().item()


def export(path: Path, out: Path, deterministic: bool = False) -> str:
    """Writes the policy of a checkpoint and compares the file with the agent; returns what to print.

    The file gets its name after the comparison: a graph that is refused leaves nothing, and an earlier file stays.
    """
    import lightning as L

    from dqs_lightning.collection.data import OnlineData

    agent = load_agent(path)
    set_threads(None, agent)
    if not isinstance(agent, DQS):
        raise InputError(f"{path}: holds an agent of class {type(agent).__name__}; only DQS has an exporter")
    if isinstance(agent.diffusion, EnergyDiffusion):
        raise InputError(f"{path}: its agent has no actor (amortised=False), so there is nothing to export")
    policy = Policy(agent, deterministic)
    facts = policy.facts()
    if L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY in load_run(path):
        facts["task"] = OnlineData.load_from_checkpoint(path).environment.name
    with (
        refusing(f"--out={out}: cannot be written: ", OSError),
        # Only this user can open it: the file is read back, and a .pt2 that is read can run code.
        tempfile.TemporaryDirectory(prefix=".dqs-export-", dir=check_target(out)) as place,
    ):
        temporary = Path(place) / f"policy{out.suffix}"
        write(policy, temporary, facts)
        act = load(temporary)
        distance = max(difference(act, policy, agent, batch) for batch in (1, 17))  # neither is the trace's size
        if not distance <= TOLERANCE:  # also for NaN
            raise InputError(f"--out={out}: differs from the agent by {distance:.1e}, at most {TOLERANCE:.0e}")
        inputs = torch.randn(1, policy.observation_dim), *policy.noise(1)
        exported, eager = latencies(lambda: act(*inputs), lambda: agent.act(inputs[0], deterministic, best_of=1))
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, out)
    shapes = f"observation [batch, {policy.observation_dim}]"
    if policy.draws:
        shapes += f", noise [{policy.draws}, batch, {policy.action_dim}]"
    line = f"{out}  {shapes}  largest difference {distance:.1e}  {exported:.2f} ms at batch 1, eager {eager:.2f} ms"
    if agent.best_of > 1 and not deterministic:
        line += f"\nThe agent's best_of={agent.best_of} is not exported: the graph draws one action."
    return line


@reported("dqs-export")
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning|torch|copyreg)\b.*")
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # of operators that are not in use here
        logging.getLogger(name).setLevel(logging.ERROR)
    options = parse(arguments)
    check_target(options.out)
    path = existing_checkpoint(options.run_or_ckpt)
    restrict_imports(options.trust)
    print(export(path, options.out, options.deterministic))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
