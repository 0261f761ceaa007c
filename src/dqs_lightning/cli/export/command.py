"""`dqs-export`: write a trained policy as one graph, ONNX or a torch.export package, to act without this library.

The graph maps `observation` [batch, o] and `noise` [draws, batch, d], the standard normals in the order in which the
policy draws them, to `action` [batch, d]; `temperature` [batch, 1] is an input too where the policy was trained with
temperature_range. best_of > 1 is not exported: run the graph with several noises, and rank the
actions with the critic where there is one.
"""

import argparse
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lightning as L
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dqs_lightning.agents import Agent, load_agent
from dqs_lightning.agents.diffusion_policy import DiffusionPolicy
from dqs_lightning.agents.graph import PolicyGraph
from dqs_lightning.agents.pretrained import agent_facts
from dqs_lightning.checkpoint.archive import load_run
from dqs_lightning.cli.errors import DONE, InputError, refusing, reported
from dqs_lightning.cli.evaluate import RUN_HELP, TRUST_HELP, existing_checkpoint
from dqs_lightning.cli.export.graph import TOLERANCE, difference, inputs, load, present_temperature, write
from dqs_lightning.cli.export.use import use
from dqs_lightning.cli.files import existing_folder
from dqs_lightning.cli.machine import latencies, set_threads
from dqs_lightning.cli.trust import restrict_imports
from dqs_lightning.collection.data import OnlineData
from dqs_lightning.sharing.card import card, free_place
from dqs_lightning.sharing.card import write as write_card
from dqs_lightning.sharing.facts import task_facts
from dqs_lightning.sharing.run import folder_of
from dqs_lightning.sharing.run import read as read_run
from dqs_lightning.sharing.text import printable


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="dqs-export", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("run_or_ckpt", type=Path, help=RUN_HELP)
    parser.add_argument("--out", type=Path, required=True, help="the file; its suffix decides: .onnx or .pt2")
    parser.add_argument("--best", action="store_true", help="of a run directory: best.ckpt, not last.ckpt")
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


def policy_facts(agent: Agent, graph: PolicyGraph, deterministic: bool) -> dict[str, Any]:
    """Returns the metadata that the agent and its graph decide."""
    bounds = {"action_low": graph.action_low, "action_high": graph.action_high}
    if (temperature := present_temperature(graph, agent)) is not None and isinstance(agent, DiffusionPolicy):
        span = agent.temperature_range
        bounds |= {"temperature_low": span.low * temperature, "temperature_high": span.high * temperature}
    return {**agent_facts(agent), "deterministic": deterministic, **bounds}


def facts_of_data(path: Path, agent: Agent) -> dict[str, Any]:
    """Returns the metadata of a checkpoint's environment, where it has one."""
    if L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY not in load_run(path):
        return {}
    data = OnlineData.load_from_checkpoint(path)
    with refusing(f"{path}: ", ValueError):
        return task_facts(data.environment, data.transforms, (agent.observation_dim, agent.action_dim))


def link(video: Path | None, folder: Path) -> str | None:
    """Returns the relative address of a video for a card in a folder."""
    return None if video is None else quote(Path(os.path.relpath(video, folder)).as_posix())


def export(path: Path, out: Path, deterministic: bool = False) -> str:
    """Writes the policy of a checkpoint, after comparing it with the agent, and its card; returns what to print.

    The file gets its name after the comparison: a graph that is refused leaves nothing, and an earlier file stays.
    """
    agent = load_agent(path)
    set_threads(None, agent)
    with refusing(f"{path}: ", MisconfigurationException):
        graph = agent.policy_graph(deterministic)
    facts = policy_facts(agent, graph, deterministic) | facts_of_data(path, agent)
    with refusing(f"--out={out}: no place for the model card: ", OSError, ValueError):
        place_of_card = free_place(out.parent, out.stem)
    with refusing("", ValueError):
        run = read_run(folder_of(path), facts["env_frames"])
    sizes = agent.observation_dim, agent.action_dim
    best_of = agent.best_of if agent.has_q else None
    section = use(out, facts, sizes, graph, chooses=best_of is not None)
    text = card(facts, run, section, best_of, link(run.video, out.parent))
    with (
        refusing(f"--out={out}: cannot be written: ", OSError),
        # Only this user can open it: the file is read back, and a .pt2 that is read can run code.
        tempfile.TemporaryDirectory(prefix=".dqs-export-", dir=check_target(out)) as place,
    ):
        temporary = Path(place) / f"policy{out.suffix}"
        write(graph, agent, temporary, facts)
        act = load(temporary)
        # Neither batch size is that of the trace.
        distance = max(difference(act, graph, agent, deterministic, batch) for batch in (1, 17))
        if not distance <= TOLERANCE:  # also for NaN
            raise InputError(f"--out={out}: differs from the agent by {distance:.1e}, at most {TOLERANCE:.0e}")
        values = inputs(graph, agent, 1, present_temperature(graph, agent))
        exported, eager = latencies(lambda: act(*values), lambda: agent.act(values[0], deterministic, best_of=1))
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, out)
        write_card(text, place_of_card)
    shapes = f"observation [batch, {agent.observation_dim}]"
    if graph.takes_temperature:
        shapes += ", temperature [batch, 1]"
    if graph.draws:
        shapes += f", noise [{graph.draws}, batch, {agent.action_dim}]"
    line = f"{out}  {shapes}  largest difference {distance:.1e}  {exported:.2f} ms at batch 1, eager {eager:.2f} ms"
    if agent.best_of > 1 and not deterministic:
        line += f"\nThe agent's best_of={agent.best_of} is not exported: the graph draws one action."
    if transforms := facts.get("observation_transforms"):
        names = ", ".join(transform["class_path"].rpartition(".")[2] for transform in transforms)
        line += f"\nObservations must have passed through these transforms, which are not in the graph: {names}"
    if "unknown" in facts:
        line += f"\nObservation order, action bounds and control period are unknown: {printable(facts['unknown'])}"
    line += f"\n{place_of_card}"
    return line


@reported("dqs-export")
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning|torch|copyreg)\b.*")
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # of operators that are not in use here
        logging.getLogger(name).setLevel(logging.ERROR)
    options = parse(arguments)
    check_target(options.out)
    path = existing_checkpoint(options.run_or_ckpt, options.best)
    restrict_imports(options.trust)
    print(export(path, options.out, options.deterministic))
    return DONE
