"""Times a decision of the policies in the runs' checkpoints on this machine."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dqs_lightning.cli.errors import InputError
from dqs_lightning.cli.report.files import Run

BATCH = 64
CHECKPOINT = "checkpoints/last.ckpt"

Decisions = Mapping[tuple[str, str], tuple[float, float]]
"""Median milliseconds of one decision and of `BATCH` at once, by task and method."""


def time_decisions(runs: Sequence[Run], trust: Sequence[str] = ()) -> Decisions:
    """Times the policy of each method's first seed that has a checkpoint, on one thread; policies take turns.

    Raises:
        InputError: when no run has a checkpoint, or one cannot be read. Its classes must be of registered components
            or of the packages in `trust`.
    """
    there: dict[tuple[str, str], Path] = {}
    for run in runs:
        if run.folder and (file := run.folder / CHECKPOINT).is_file():
            there.setdefault((run.task, run.method), file)
    if not there:
        raise InputError(f"--time-actions: none of the runs has {CHECKPOINT}")
    import torch  # which the rest of a report does not need

    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint.archive import CheckpointError
    from dqs_lightning.cli.latency import latencies
    from dqs_lightning.cli.trust import restrict_imports

    restrict_imports(trust)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        agents = [load_agent(file) for file in there.values()]
        sizes = [(agent, size) for agent in agents for size in (1, BATCH)]
        calls = [partial(agent.act, torch.randn(size, agent.observation_dim)) for agent, size in sizes]
        latencies(*calls, repeats=5)  # memory is allocated, kernels are chosen
        times = latencies(*calls)
    except CheckpointError as error:
        raise InputError(f"--time-actions: {error}") from error
    finally:
        torch.set_num_threads(threads)
    return dict(zip(there, zip(times[::2], times[1::2], strict=True), strict=True))
