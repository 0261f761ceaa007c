"""`dqs-eval`: measure the return of a trained policy in a fresh process, and film it."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING

from dqs_lightning.cli.errors import DONE, InputError, refusing, reported
from dqs_lightning.cli.files import existing_folder
from dqs_lightning.sharing.text import printable

if TYPE_CHECKING:  # torch is imported once the arguments have been checked
    from dqs_lightning.agents import Agent
    from dqs_lightning.collection.data import OnlineData
    from dqs_lightning.envs.watched import Watched

RUN_HELP = "a run directory, a checkpoint file, or an agent on the Hugging Face Hub, hf://owner/name"
TRUST_HELP = "a further package whose classes the checkpoint may name; may be repeated"
MAX_SEED = 2**32 - 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="dqs-eval", description=__doc__, allow_abbrev=False)
    more = "; several: their common policy, exp((w1 Q1 + w2 Q2) / T), in the environment of the first"
    parser.add_argument("run_or_ckpt", type=Path, nargs="+", help=RUN_HELP + more)
    parser.add_argument("--weights", type=float, nargs="+", help="of each of several runs (default 1 each)")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each task, side by side (default 10)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the environments and of the policy")
    parser.add_argument("--best", action="store_true", help="of a run directory: best.ckpt, not last.ckpt")
    temperature = "T of a DQS policy that has learned a temperature_range, or of several runs"
    parser.add_argument("--temperature", type=float, help=temperature)
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--deterministic", action="store_true", help="the noise-free policy")
    policy.add_argument("--best_of", type=int, help="draw so many actions and take the one of highest Q")
    policy.add_argument("--random", action="store_true", help="uniformly random actions instead of the policy")
    parser.add_argument("--video", action="store_true", help="write videos/eval.mp4 of the first episode")
    parser.add_argument("--device", default="cpu", help="where the policy runs (default cpu)")
    parser.add_argument("--max_steps", type=int, help="agent steps after which episodes that have not ended are cut")
    parser.add_argument("--threads", type=int, help="of torch (default: OMP_NUM_THREADS, or what the networks need)")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)
    options = parser.parse_args(arguments)
    ranges = {"episodes": (1, 10_000), "best_of": (1, 100_000), "max_steps": (1, 10**9), "threads": (1, 1024)}
    for name, (least, most) in (ranges | {"seed": (0, MAX_SEED - options.episodes)}).items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name}={value}: must be {least} to {most}")
    runs = len(options.run_or_ckpt)
    if options.weights is not None and not 1 < runs == len(options.weights):
        parser.error(f"--weights={options.weights}: must be one number for each of two or more runs")
    return options


def existing_checkpoint(run_or_ckpt: Path, best: bool = False) -> Path:
    """Returns the last or best checkpoint of a run directory, that of the Hub, or itself; refuses a missing one."""
    from dqs_lightning.checkpoint.archive import checkpoint_of
    from dqs_lightning.sharing.hub import download, is_address

    if best and not run_or_ckpt.is_dir():
        raise InputError(f"--best: needs a run directory, not {run_or_ckpt}")
    if is_address(run_or_ckpt):
        return download(run_or_ckpt)
    path = checkpoint_of(run_or_ckpt, best)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give a run directory or a checkpoint file")
    return path


def load_renderer() -> None:
    """Sets MUJOCO_GL, which MuJoCo reads at import, to what this machine can do, and imports what renders."""
    found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
    if os.environ.get("MUJOCO_GL", "disabled") == "disabled" and found:
        os.environ["MUJOCO_GL"] = found[0]
    with refusing(f"--video: MuJoCo cannot render here with MUJOCO_GL={os.environ['MUJOCO_GL']}: ", Exception):
        import dqs_lightning.envs.dm_control  # noqa: F401  (it loads the renderer)


def make_environments(path: Path, data: "OnlineData", agent: "Agent", options: argparse.Namespace) -> "Watched":
    """Makes the environments of the evaluation; refuses sizes that are not those of the agent."""
    try:
        env = data.make_environment(options.episodes * len(data.environment.tasks), options.seed)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{path}: its environment {data.environment.name} cannot be made here: {reason}") from error
    sizes = (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1])
    if sizes != (agent.observation_dim, agent.action_dim):
        raise InputError(
            f"{path}: its environment has {sizes[0]} observations and {sizes[1]} actions, its agent "
            f"{agent.observation_dim} and {agent.action_dim}"
        )
    return env


def evaluate(paths: Sequence[Path], options: argparse.Namespace) -> str:
    """Runs the episodes of the policy of one or several checkpoints; returns what to print."""
    import torch

    from dqs_callbacks.video import CannotFilmError, check_films, film
    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint.archive import load_run
    from dqs_lightning.cli.eval_policy import chosen_policy
    from dqs_lightning.cli.machine import set_threads
    from dqs_lightning.cli.trust import restrict_imports
    from dqs_lightning.collection.data import OnlineData
    from dqs_lightning.evaluation.loader import by_task
    from dqs_lightning.evaluation.returns import STEP_LIMIT, episode_returns, mean_with_interval

    with refusing(f"--device={options.device}: ", Exception):  # each backend raises another
        torch.zeros(1, device=options.device).item()
    restrict_imports(options.trust)
    path = paths[0]
    frames = [load_run(each).get("env_frames") for each in paths]
    data = OnlineData.load_from_checkpoint(path)
    agents = [load_agent(each, options.device) for each in paths]
    set_threads(options.threads, agents[0])
    policy = chosen_policy(agents, options)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    video = run / "videos" / "eval.mp4"
    if options.video:
        existing_folder(f"--video: {video}", video.parent)
        with refusing("--video: ", CannotFilmError):
            check_films(data)
    torch.manual_seed(options.seed)
    env = make_environments(path, data, agents[0], options)
    limit = options.max_steps or STEP_LIMIT
    if options.video:
        returns, _ = film(env, policy, video, episodes=1, step_limit=limit)
    else:
        returns = episode_returns(env, policy, step_limit=limit)
    env.close(raise_if_closed=False)
    each = by_task(returns, data.environment.tasks)
    mean, (low, high) = mean_with_interval(each.pop("return"))
    trained = (f"{number:,}" if isinstance(number, int) else "an unknown number of" for number in frames)
    named = (f"{type(agent).__name__} at {number} frames" for agent, number in zip(agents, trained, strict=True))
    kind = "random policy" if options.random else " + ".join(named)
    interval = f"95 % interval [{low:.1f}, {high:.1f}]"
    line = f"{printable(data.environment.name)}  {kind}  return {mean:.1f}  {interval}  {options.episodes} episodes"
    lines = [line]
    for name, found in each.items():
        lines.append(f"  {printable(name.removeprefix('return/'))}  return {float(found.mean()):.1f}")
    return "\n".join([*lines, str(video)] if options.video else lines)


@reported("dqs-eval")
def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    options = parse(arguments)
    if options.video and str(options.run_or_ckpt[0]).startswith("hf:/"):
        raise InputError("--video: needs a run directory to write to; save the agent by save_pretrained first")
    paths = [existing_checkpoint(each, options.best) for each in options.run_or_ckpt]
    if options.video:
        load_renderer()
    print(evaluate(paths, options))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
