"""What a search takes from Optuna: suggestions, pruning, and a file that Optuna's tools read. Pure functions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from dqs_lightning.cli.sweep_manifest import Trial
from dqs_lightning.cli.sweep_space import Choices, Prune, Range, SearchSettings, Space, Value

Curve = Mapping[int, float]
"""Returns by environment frames."""
STATES = {
    "running": TrialState.RUNNING,
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest(settings: SearchSettings, trials: Sequence[Trial]) -> dict[str, Value]:
    """Returns the parameters of the next trial, by Optuna's TPE sampler.

    They depend only on the settings and on the earlier trials. Failed trials are ignored, as Optuna does.
    """
    seed = int(np.random.SeedSequence([settings.seed, len(trials)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=settings.random_trials, multivariate=True, constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = _distributions(settings.space)
    for trial in trials:
        study.add_trial(_frozen(trial, distributions))
    return study.ask(distributions).params


def should_prune(curve: Curve, others: Iterable[Curve], prune: Prune) -> bool:
    """Whether Optuna's median pruner stops a trial.

    Args:
        curve: the trial's returns so far.
        others: those of the finished trials, over the same tasks and seeds.
        prune: when the rule applies.
    """
    study = optuna.create_study(direction="maximize")
    for other in others:
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.0, intermediate_values=dict(other)))
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(curve))
    pruner = optuna.pruners.MedianPruner(prune.startup_trials, prune.warmup_frames)
    return pruner.prune(study, trial)


def journal(space: Space, trials: Iterable[Trial]) -> str:
    """Returns the trials as the text of an Optuna study, for `JournalFileBackend`."""
    lines = _Lines()
    storage = optuna.storages.JournalStorage(lines)
    study = optuna.create_study(direction="maximize", study_name="dqs-sweep", storage=storage)
    for trial in trials:
        study.add_trial(_frozen(trial, _distributions(space)))
    return "".join(f"{json.dumps(log)}\n" for log in lines.logs)


class _Lines(BaseJournalBackend):
    """The lines of a journal, in memory."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


def _frozen(trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    stopped: dict[int, float] = {}
    if trial.state == "pruned" and trial.frames is not None and trial.value is not None:
        stopped = {trial.frames: trial.value}
    return create_trial(
        state=STATES[trial.state],
        value=trial.value if trial.state == "done" else None,
        params=trial.parameters,
        distributions=distributions,
        intermediate_values=stopped,
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(options) for name, options in space.items()}


def _distribution(options: Range | Choices) -> BaseDistribution:
    if isinstance(options, Choices):
        return CategoricalDistribution(options.texts)
    if options.whole:
        return IntDistribution(int(options.low), int(options.high), options.log, int(options.step or 1))
    return FloatDistribution(options.low, options.high, options.log, options.step)
