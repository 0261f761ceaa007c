"""Writes a policy as an ONNX graph or a torch.export package, reads it back, and compares it with the agent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqs_lightning.agents import Agent
from dqs_lightning.agents.diffusion_policy import DiffusionPolicy
from dqs_lightning.agents.graph import PolicyGraph

TOLERANCE = 1e-5
"""Largest difference from the agent itself, in units of the action, with which a graph is kept."""

FACTS = "facts.json"
"""Name of the metadata among the extra files of a .pt2."""

Act = Callable[..., Tensor]
"""The inputs that `names` lists -> action [batch, d]."""


def names(graph: PolicyGraph) -> list[str]:
    """Returns the inputs of a graph: observation [batch, o], temperature [batch, 1] and noise [draws, batch, d]."""
    given = {"observation": True, "temperature": graph.takes_temperature, "noise": graph.draws > 0}
    return [name for name, present in given.items() if present]


def inputs(graph: PolicyGraph, agent: Agent, batch: int, temperature: float | None) -> tuple[Tensor, ...]:
    """Returns values of `names`: random observations, a temperature, and noise, which is drawn last, as agents do."""
    found = [torch.randn(batch, agent.observation_dim)]
    if temperature is not None:
        found.append(torch.full((batch, 1), temperature))
    draws = [torch.randn(batch, agent.action_dim) for _ in range(graph.draws)]
    return (*found, torch.stack(draws)) if draws else tuple(found)


def present_temperature(graph: PolicyGraph, agent: Agent) -> float | None:
    """Returns the agent's temperature where it is an input of the graph; None otherwise."""
    return float(agent.temperature()) if graph.takes_temperature and isinstance(agent, DiffusionPolicy) else None


def write(graph: PolicyGraph, agent: Agent, path: Path, facts: Mapping[str, Any]) -> None:
    """Traces a graph for any batch size and writes it in the format of the path's suffix.

    Args:
        graph: of the agent.
        agent: whose sizes are used.
        path: ends in .onnx or .pt2.
        facts: metadata that JSON can hold. In ONNX, whose properties are texts, other values are written as JSON.
    """
    batch = torch.export.Dim("batch")
    # 2: a size of 1 could be taken for a constant
    examples = inputs(graph, agent, 2, present_temperature(graph, agent))
    shapes = tuple({1 if name == "noise" else 0: batch} for name in names(graph))
    program = torch.export.export(graph, examples, dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})
        return
    import onnx

    exported = torch.onnx.export(
        program, dynamo=True, output_names=["action"], dynamic_shapes=shapes, verbose=False, external_data=False
    )
    assert exported is not None
    model = exported.model_proto
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
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
    keys = [item.name for item in session.get_inputs()]

    def act(*values: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in values)
        return torch.from_numpy(session.run(None, dict(zip(keys, arrays, strict=True)))[0])

    return act


def difference(act: Act, graph: PolicyGraph, agent: Agent, deterministic: bool, batch: int) -> float:
    """Returns the largest difference of one number from the action of the agent with the same random numbers."""
    state, temperature = torch.get_rng_state(), present_temperature(graph, agent)
    values = inputs(graph, agent, batch, temperature)
    torch.set_rng_state(state)  # the agent draws for itself; the same numbers are drawn again
    choices = {} if temperature is None else {"temperature": temperature}
    expected = agent.act(torch.randn(batch, agent.observation_dim), deterministic, best_of=1, **choices)
    return (act(*values) - expected).abs().max().item()
