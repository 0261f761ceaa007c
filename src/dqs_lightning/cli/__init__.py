"""The command line: `dqs-fit`, `dqs-eval`, `dqs-export`, `dqs-sweep` and `dqs-report`."""

import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MUJOCO_GL", "disabled")
os.environ.setdefault("MPLBACKEND", "agg")  # a matplotlibrc in the working directory could name any module
