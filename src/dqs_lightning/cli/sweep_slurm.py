"""Writes the runs of a sweep as a SLURM array job."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dqs_lightning.cli.sweep_plan import Run

GRACE_S = 120
"""Seconds before the time limit at which SLURM sends the signal on which a run saves."""


def slurm_script(runs: Sequence[Run], out: Path, jobs: int | None, cpus: int, gpus: float) -> str:
    """Returns a script for sbatch, of which each task of the array trains one run.

    A task that its time limit or SLURM stops saves, and is requeued; it then continues. Submitting the script again
    continues what is not finished, as `dqs-sweep` does.

    Args:
        runs: in the order of the tasks; one or more.
        out: the sweep's folder, for the output of the tasks.
        jobs: tasks at a time; None: no limit.
        cpus: of each task, and torch's threads.
        gpus: of each task; a fraction is rounded up.
    """
    limit = f"%{jobs}" if jobs else ""
    gres = [f"#SBATCH --gres=gpu:{-int(-gpus // 1)}"] if gpus else []
    cases = [f"{index}) set -- {shlex.join(run.command)} ;;" for index, run in enumerate(runs)]
    lines = [
        "#!/bin/bash",
        f"# {len(runs)} runs. Options of the cluster, such as --time and --partition, are given to sbatch.",
        f"#SBATCH --job-name={out.name}",
        f"#SBATCH --array=0-{len(runs) - 1}{limit}",
        f"#SBATCH --cpus-per-task={cpus}",
        *gres,
        f"#SBATCH --output={out}/slurm-%a.txt",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:TERM@{GRACE_S}",
        f"export OMP_NUM_THREADS={cpus}",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        '*) echo "no run for task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;',
        "esac",
        '"$@" &',
        "process=$!",
        "trap 'kill -TERM \"$process\"' TERM",
        'wait "$process"',
        "code=$?",
        "# A signal ends the first wait; the run is then saving.",
        'while kill -0 "$process" 2>/dev/null; do',
        '    wait "$process"',
        "    code=$?",
        "done",
        'if [ "$code" -eq 75 ]; then',
        '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
