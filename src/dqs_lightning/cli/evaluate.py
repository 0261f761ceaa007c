"""`dqs-eval`: measure the return of a trained policy in a fresh process, and film it."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")

from dqs_lightning.cli.errors import BAD_INPUT, DONE, InputError


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
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        parser.error(f"--episodes={options.episodes}: allowed is 1 or more")
    if options.best_of is not None and options.best_of < 1:
        parser.error(f"--best_of={options.best_of}: allowed is 1 or more")
    return options


def checkpoint_of(run_or_ckpt: Path) -> Path:
    """The checkpoint that a path means.

    Raises:
        InputError: when there is none.
    """
    path = run_or_ckpt / "checkpoints" / "last.ckpt" if run_or_ckpt.is_dir() else run_or_ckpt
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


def evaluate(options: argparse.Namespace) -> str:
    """Run the episodes; returns the line to print."""
    import imageio
    import torch
    from jsonargparse import set_parsing_settings

    from dqs_lightning.agents import load_agent
    from dqs_lightning.checkpoint import safe_load
    from dqs_lightning.cli.fit import trusted_packages
    from dqs_lightning.data import OnlineData
    from dqs_lightning.evaluation import episode_returns, mean_with_interval

    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=trusted_packages([]))
    path = checkpoint_of(options.run_or_ckpt)
    frames = safe_load(path).get("env_frames")
    environment = OnlineData.load_from_checkpoint(path, weights_only=True).environment
    agent = load_agent(path, options.device)
    torch.manual_seed(options.seed)
    env = environment.make(options.episodes, options.seed)

    def policy(observation: torch.Tensor) -> torch.Tensor:
        return agent.act(observation.to(agent.device), options.deterministic, options.best_of).cpu()

    pictures: list[Any] = []

    def film(_: Any) -> None:
        try:
            pictures.append(env.render())
        except Exception as error:
            raise InputError(
                f"--video: {environment.name} cannot be rendered here with MUJOCO_GL="
                f"{os.environ.get('MUJOCO_GL')}: {str(error)[:200]}"
            ) from error

    returns = episode_returns(env, None if options.random else policy, film if options.video else None)
    mean, (low, high) = mean_with_interval(returns)
    kind = "random policy" if options.random else f"{type(agent).__name__} at {frames:,} frames"
    line = (
        f"{environment.name}  {kind}  return {mean:.1f}  95 % interval [{low:.1f}, {high:.1f}]  {len(returns)} episodes"
    )
    if options.video:
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        target = run / "videos" / "eval.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        imageio.mimwrite(target, pictures, fps=30, macro_block_size=None)
        line += f"\n{target}"
    env.close(raise_if_closed=False)
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry point."""
    warnings.filterwarnings("ignore", module=r"(torchrl|tensordict|lightning)\b.*")
    options = parse(arguments)
    try:
        if options.video:
            choose_renderer()
        os.environ.setdefault("MUJOCO_GL", "disabled")
        from dqs_lightning.checkpoint import CheckpointError

        try:
            print(evaluate(options))
        except CheckpointError as error:
            raise InputError(str(error)) from error
    except InputError as error:
        print(f"dqs-eval: {error}", file=sys.stderr)
        return BAD_INPUT
    return DONE


if __name__ == "__main__":
    sys.exit(main())
