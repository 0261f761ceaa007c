"""Saving of pictures, and their common style."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.usetex": False,  # a matplotlibrc could have names, which come from files, read as TeX
}
"""Matplotlib's settings for all pictures, within `matplotlib.rc_context`."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's palette for colour-blind readers."""
DPI = 160


def publish(trainer: L.Trainer, name: str, draw: Callable[[], Figure]) -> None:
    """Draws pictures/<name>.png in the run directory, and sends the figure to loggers that show pictures."""
    file = Path(trainer.default_root_dir) / "pictures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = draw()
        figure.savefig(file, dpi=DPI)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, trainer.global_step, close=False)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(file)], trainer.global_step)
