"""`dqs-eval`: measure the return of a trained policy in a fresh process, and film it."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

from dqs_lightning.cli.errors import BAD_INPUT, DONE, ENVIRONMENT_FAILED, InputError


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dqs-eval", description=__doc__)
    parser.add_argument("run_or_ckpt", type=Path, help="a run directory, or a checkpoint file")
    parser.add_argument("--episodes", type=int, default=10, help="episodes, side by side (default 10)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the environments and of the policy")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--deterministic", action="store_true", help="the noise-free policy")
    policy.add_argument("--best_of", type=int, help="draw so many actions and take the one of highest Q")
    policy.add_argument("--random", action="store_true", help="uniformly random actions instead of the policy")
    parser.add_argument("--video", action="store_true", help="write videos/eval.mp4 of the first episode")
    parser.add_argument("--device", default="cpu", help="where the policy runs (default cpu)")
    parser.add_argument("--max_steps", type=int, help="agent steps after which episodes that have not ended are cut")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        parser.error(f"--episodes={options.episodes}: allowed is 1 or more")
    if options.max_steps is not None and options.max_steps < 1:
        parser.error(f"--max_steps={options.max_steps}: must be >= 1")
    if options.best_of is not None and options.best_of < 1:
        parser.error(f"--best_of={options.best_of}: allowed is 1 or more")
    return options


def existing_checkpoint(run_or_ckpt: Path) -> Path:
    """The checkpoint that a path means.

    Raises:
        InputError: when there is none.
    """
    from dqs_lightning.checkpoint import checkpoint_of

    path = checkpoint_of(run_or_ckpt)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give a run directory or a checkpoint file")
    return path


def choose_renderer() -> None:
    """Set MUJOCO_GL, which MuJoCo reads at import, to what this machine can do.

    Raises:
        InputError: when neither EGL nor OSMesa is installed.
    """
    if os.environ.get("MUJOCO_GL", "disabled") != "disabled":
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    raise InputError(
        "--video: needs the EGL or the OSMesa library (Debian: libegl1 or libosmesa6); neither is installed"
    )


def evaluate(path: Path, options: argparse.Namespace) -> str:
    """Run the episodes of a checkpoint's policy; returns what to print."""
    import torch
    from jsonargparse import set_parsing_settings

    from dqs_callbacks.video import CannotFilmError, check_films, film
    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint import CheckpointError, load_run
    from dqs_lightning.cli.trust import trusted_packages
    from dqs_lightning.data import OnlineData
    from dqs_lightning.evaluation import STEP_LIMIT, episode_returns, mean_with_interval, policy_of

    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=trusted_packages([]))
    try:
        frames = load_run(path).get("env_frames")
        data = OnlineData.load_from_checkpoint(path, weights_only=True)
        agent = load_agent(path, options.device)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    torch.manual_seed(options.seed)
    env = data.make_environment(options.episodes, options.seed)
    policy = None if options.random else policy_of(agent, options.deterministic, options.best_of)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    video = run / "videos" / "eval.mp4"
    if options.video:
        try:
            check_films(data)
        except CannotFilmError as error:
            raise InputError(f"--video: {error}") from error
    limit = options.max_steps or STEP_LIMIT
    if options.video:
        returns = film(env, policy, video, episodes=1, step_limit=limit).returns
    else:
        returns = episode_returns(env, policy, step_limit=limit)
    env.close(raise_if_closed=False)
    mean, (low, high) = mean_with_interval(returns)
    kind = "random policy" if options.random else f"{type(agent).__name__} at {frames:,} frames"
    interval = f"95 % interval [{low:.1f}, {high:.1f}]"
    lines = [f"{env.label}  {kind}  return {mean:.1f}  {interval}  {options.episodes} episodes"]
    if options.video:
        lines.append(str(video))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    options = parse(arguments)
    try:
        path = existing_checkpoint(options.run_or_ckpt)
        if options.video:
            choose_renderer()
            try:
                import dm_control.suite  # noqa: F401  (it loads the renderer)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                renderer = os.environ.get("MUJOCO_GL")
                raise InputError(f"--video: MuJoCo cannot render here with MUJOCO_GL={renderer}: {reason}") from error
        os.environ.setdefault("MUJOCO_GL", "disabled")
        from dqs_lightning.envs import EnvironmentFailure

        try:
            print(evaluate(path, options))
        except EnvironmentFailure as failure:
            print(f"dqs-eval: {failure}", file=sys.stderr)
            return ENVIRONMENT_FAILED
    except InputError as error:
        print(f"dqs-eval: {error}", file=sys.stderr)
        return BAD_INPUT
    return DONE


if __name__ == "__main__":
    sys.exit(main())
