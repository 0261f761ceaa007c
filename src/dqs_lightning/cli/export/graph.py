"""Writes a policy as an ONNX graph or a torch.export package, reads it back, and compares it with the agent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqs_lightning.agents import Agent
from dqs_lightning.agents.graph import PolicyGraph

TOLERANCE = 1e-5
"""Largest difference from the agent itself, in units of the action, with which a graph is kept."""

FACTS = "facts.json"
"""Name of the metadata among the extra files of a .pt2."""

Act = Callable[..., Tensor]
"""(observation [batch, o], and noise [draws, batch, d] unless draws is 0) -> action [batch, d]."""


def noise(graph: PolicyGraph, action_dim: int, batch: int) -> tuple[Tensor, ...]:
    """Returns noise [draws, batch, d] as the only member, drawn as the agent does; () without draws."""
    draws = [torch.randn(batch, action_dim) for _ in range(graph.draws)]
    return (torch.stack(draws),) if draws else ()


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
    inputs = (torch.randn(2, agent.observation_dim), *noise(graph, agent.action_dim, 2))
    shapes = ({0: batch}, {1: batch})[: len(inputs)]
    program = torch.export.export(graph, inputs, dynamic_shapes=shapes)
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
    names = [item.name for item in session.get_inputs()]

    def act(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return act


def difference(act: Act, graph: PolicyGraph, agent: Agent, deterministic: bool, batch: int) -> float:
    """Returns the largest difference of one number from the action of the agent with the same random numbers."""
    observation = torch.randn(batch, agent.observation_dim)
    state = torch.get_rng_state()
    expected = agent.act(observation, deterministic, best_of=1)
    torch.set_rng_state(state)  # the agent draws for itself; the same numbers are drawn again
    return (act(observation, *noise(graph, agent.action_dim, batch)) - expected).abs().max().item()
