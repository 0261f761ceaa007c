"""The section of a model card that describes a graph: its inputs and output, a program that runs it, its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqs_lightning.agents.graph import PolicyGraph
from dqs_lightning.cli.export.graph import names
from dqs_lightning.sharing.facts import MAPPING
from dqs_lightning.sharing.text import block, code

ONNX = """import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession({file})
observation = np.zeros((1, {observations}), np.float32)  # of the environment
{temperature}{noise}(action,) = policy.run(None, {{{inputs}}})
{scale}metadata = policy.get_modelmeta().custom_metadata_map  # texts, of which those with structure are JSON
"""
ONNX_NOISE = "noise = np.random.default_rng().standard_normal(({draws}, 1, {actions}), np.float32)\n"
PACKAGE = """import json

import torch

files = {{"facts.json": ""}}
policy = torch.export.load({file}, extra_files=files).module()  # only for files that you trust
observation = torch.zeros(1, {observations})  # of the environment
{temperature}{noise}action = policy({inputs})
{scale}metadata = json.loads(files["facts.json"])
"""
PACKAGE_NOISE = "noise = torch.randn({draws}, 1, {actions})\n"
SCALE = f"low, high = {{low}}, {{high}}\n{MAPPING}\n"


def use(path: Path, facts: Mapping[str, Any], sizes: tuple[int, int], graph: PolicyGraph, chooses: bool) -> str:
    """Returns the section, with its heading.

    Args:
        path: of the graph; its name is shown.
        facts: its metadata.
        sizes: dimensions of observation and action.
        graph: what is in the file.
        chooses: whether the agent can choose among several samples by their Q.
    """
    (observations, actions), draws = sizes, graph.draws
    onnx = path.suffix == ".onnx"
    array = "np.array" if onnx else "torch.tensor"
    low, high = facts.get("environment_action_low"), facts.get("environment_action_high")
    temperature = ""
    if graph.takes_temperature:
        row = f"[[{facts['temperature_high']:.3g}]]"
        value = f"np.array({row}, np.float32)" if onnx else f"torch.tensor({row})"
        temperature = f"temperature = {value}  # from {facts['temperature_low']:.3g}\n"
    program = (ONNX if onnx else PACKAGE).format(
        file=json.dumps(path.name),
        observations=observations,
        temperature=temperature,
        noise=(ONNX_NOISE if onnx else PACKAGE_NOISE).format(draws=draws, actions=actions) if draws else "",
        inputs=", ".join(f'"{name}": {name}' if onnx else name for name in names(graph)),
        scale=SCALE.format(low=f"{array}({low})", high=f"{array}({high})") if low and high else "",
    )
    rows = [("input", "observation", f"[batch, {observations}]", "observations")]
    if graph.takes_temperature:
        span = f"{facts['temperature_low']:.3g} to {facts['temperature_high']:.3g}; lower ones act more greedily"
        rows.append(("input", "temperature", "[batch, 1]", span))
    if draws:
        rows.append(("input", "noise", f"[{draws}, batch, {actions}]", "standard normals, drawn anew for each action"))
    rows.append(("output", "action", f"[batch, {actions}]", f"in [{facts['action_low']:g}, {facts['action_high']:g}]"))
    table = "\n".join(f"| {kind} | {code(name)} | {shape} | {what} |" for kind, name, shape, what in rows)
    text = (
        f"## Use\n\n{code(path.name)} is the whole policy as one graph of float32 numbers, which runs without the "
        f"library that trained it.\n\n| | name | shape | |\n|---|---|---|---|\n{table}\n\n{block(program, 'python')}"
    )
    if not draws:
        return f"{text}\n\nIt returns the action without noise for each observation."
    text += "\n\nIt returns one sample of the policy for each observation."
    return f"{text} The best of several samples needs the critics, which it does not hold." if chooses else text
