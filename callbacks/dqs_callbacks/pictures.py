"""Where pictures go, and what they have in common."""

from pathlib import Path

import lightning as L
import matplotlib
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False})
matplotlib.rcParams["text.usetex"] = False  # a matplotlibrc could have names, which come from files, read as TeX

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart."""
DPI = 160


def publish(trainer: L.Trainer, name: str, figure: Figure) -> Path:
    """Write pictures/<name>.png in the run directory, and send the figure to loggers that show pictures."""
    file = Path(trainer.default_root_dir) / "pictures" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, trainer.global_step, close=False)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(file)], trainer.global_step)
    return file
