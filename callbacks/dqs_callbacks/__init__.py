"""Lightning callbacks for runs of dqs-lightning. They use its public interface; it never imports them."""

from dqs_callbacks.diagnostics import Diagnostics
from dqs_callbacks.evaluate import Evaluate
from dqs_callbacks.finite_guard import FiniteGuard
from dqs_callbacks.goals import GoalCoverage, Trajectories
from dqs_callbacks.landscape import ActionLandscape
from dqs_callbacks.preempt import Preempt
from dqs_callbacks.progress import FramesProgress, Throughput
from dqs_callbacks.rank_cores import RankCores
from dqs_callbacks.rank_watch import RankWatch
from dqs_callbacks.start_from import StartFrom
from dqs_callbacks.video import CannotFilmError, Video
from dqs_lightning.finite import NonFiniteError

__all__ = [
    "ActionLandscape",
    "CannotFilmError",
    "Diagnostics",
    "Evaluate",
    "FiniteGuard",
    "FramesProgress",
    "GoalCoverage",
    "NonFiniteError",
    "Preempt",
    "RankCores",
    "RankWatch",
    "StartFrom",
    "Throughput",
    "Trajectories",
    "Video",
]
