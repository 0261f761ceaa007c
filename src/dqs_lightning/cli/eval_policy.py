"""The policy that `dqs-eval` runs: of one agent, at a temperature, or of several agents together."""

import argparse
from collections.abc import Sequence

from dqs_lightning.agents import Agent, Composed
from dqs_lightning.agents.diffusion_policy import DiffusionPolicy
from dqs_lightning.cli.errors import InputError, refusing
from dqs_lightning.evaluation.returns import Policy, policy_of


def chosen_policy(agents: Sequence[Agent], options: argparse.Namespace) -> Policy | None:
    """Returns the policy that the options ask for; None: uniform actions. Refuses what the agents cannot do."""
    agent, temperature, best_of = agents[0], options.temperature, options.best_of
    without = next((type(each).__name__ for each in agents if not each.has_q), None)
    if best_of is not None and without:
        raise InputError(f"--best_of={best_of}: {without} has no Q(s, a) to choose by")
    if options.random:
        return None
    if len(agents) > 1:
        with refusing("", ValueError):
            together = Composed(agents, options.weights, temperature).to(agent.device)
        return lambda seen: together.act(seen.to(agent.device), options.deterministic, best_of).to(seen.device)
    if temperature is None:
        return policy_of(agent, options.deterministic, best_of)
    if not isinstance(agent, DiffusionPolicy):
        raise InputError(f"--temperature={temperature:g}: {type(agent).__name__} is not sampled at a temperature")
    with refusing("--", ValueError):
        agent.chosen_temperature(temperature)
    return policy_of(agent, options.deterministic, best_of, temperature=temperature)
