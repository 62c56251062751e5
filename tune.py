"""Find the noise level, scale and weights for a generator and a classifier, on a few images of any data set.

First the largest --start_step at which denoising without a pull keeps 95 % of the predictions, then scale, distance,
steps (and fresh noise) by successive halving. Writes TUNE_PATH/preset.yaml, which --preset reads, the table and a plot;
the same command goes on where it was stopped. All other flags are main.py's.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from dime.core.arithmetic import keep_freed_memory
from dime.core.cli import Parser, integer, run, say, select_device, stoppable
from dime.core.config import as_text, parse_config
from dime.core.explain import Explanations
from dime.core.files import write_atomically
from dime.core.job.setup import Setup, set_up
from dime.core.metrics.scripts import png
from dime.core.settings import Settings
from dime.core.table import markdown_table
from dime.core.truth.rows import evaluations
from dime.core.tuning import Record, Trial, candidates, front, largest_tau, successive_halving


def main() -> None:
    """Search, and say what was found."""
    parser = Parser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[1])
    parser.add_argument("--tune_path", type=Path, default=Path("tune"), help="folder of what is found")
    parser.add_argument("--tune_images", type=integer(1), default=16, help="images to tune on")
    parser.add_argument("--candidates", type=integer(1), default=16, help="settings to try")
    parser.add_argument("--budget", type=integer(1), default=50_000, help="evaluations of the diffusion model, at most")
    own, rest = parser.parse_known_args()
    found_here = {"start_step": 1, "batch_size": own.tune_images, "num_batches": 1}
    config = replace(parse_config(__doc__.splitlines()[0], rest), **found_here)
    keep_freed_memory()
    with stoppable("run the same command again"):
        setup = set_up(config, select_device(config.gpu))
        own.tune_path.mkdir(parents=True, exist_ok=True)
        identity = {**setup.config.flags(), **setup.explainer.diffusion.flags, "images": own.tune_images}
        record = Record(own.tune_path / "trials.jsonl", identity)
        search(Tuner(setup, record), own.candidates, own.budget, own.tune_path)


class Tuner:
    """Tries settings on the first images of a command."""

    def __init__(self, setup: Setup, record: Record) -> None:
        self.setup, self.record, self.batch = setup, record, setup.batch(setup.selection)

    def explain(self, settings: Settings, images: int) -> Explanations:
        """The first images, explained."""
        return replace(self.setup.explainer, settings=settings).explain(self.batch.rows(range(images)))

    def keeps(self, tau: int) -> float:
        """The share of predictions that denoising from τ keeps where nothing pulls."""

        def compute() -> float:
            plain = Settings(method="naive", start_step=tau, classifier_scales=(0.0,), seed=self.setup.config.seed)
            result = self.explain(plain, len(self.batch))
            return float((result.cf_pred == result.pred).float().mean())

        return self.record(["keeps", tau], compute)

    def cost(self, flags: Mapping[str, Any], tau: int, attempts: int | None = None) -> int:
        """Evaluations for one image in so many attempts; in all of them, if not given."""
        known = {**self.setup.config.flags(), **self.setup.explainer.diffusion.flags, **flags, "start_step": tau}
        return evaluations(known, attempts or len(known["classifier_scales"]))

    def measure(self, flags: Mapping[str, Any], images: int, tau: int) -> Trial:
        """What settings come to on the first images."""

        def compute() -> dict[str, Any]:
            settings = replace(self.setup.config.settings, **flags, start_step=tau)
            result = self.explain(settings, images)
            scales = torch.tensor(settings.classifier_scales).tolist()
            attempts = [scales.index(scale) + 1 if scale else 0 for scale in result.scale.tolist()]
            spent = [self.cost(flags, tau, count) if count else 0 for count in attempts]
            flip, change = float(result.flipped.float().mean()), float(result.l_1.mean())
            return asdict(Trial(dict(flags), images, flip, change, sum(spent) / images))

        return Trial(**self.record(["trial", dict(flags), images, tau], compute))


def search(tuner: Tuner, count: int, budget: float, path: Path) -> None:
    """The noise level, the halving, and the files."""
    config, explainer = tuner.setup.config, tuner.setup.explainer
    tau = largest_tau(tuner.keeps, explainer.diffusion.process.num_timesteps - 1)
    say(f"--start_step {tau}: the largest that keeps the predictions where nothing pulls")
    tried = candidates(config.method, count, config.seed)
    cost = partial(tuner.cost, tau=tau)
    trials = successive_halving(tried, partial(tuner.measure, tau=tau), cost, len(tuner.batch), budget)
    best, header = front(trials), [*trials[0].flags, "images", "flipped", "change", "evaluations", "nothing beats it"]

    def row(trial: Trial) -> list[Any]:
        figures = trial.images, f"{trial.flip:.2f}", f"{trial.change:.4f}", f"{trial.evaluations:.0f}"
        return [*map(as_text, trial.flags.values()), *figures, "*" if trial in best else ""]

    table = markdown_table(header, map(row, trials))
    write_atomically(path / "tune.md", table)
    write_atomically(path / "tune.png", plot(trials))
    chosen = {"method": config.method, "start_step": tau, **trials[0].flags}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    write_atomically(path / "preset.yaml", yaml.safe_dump(plain, sort_keys=False))
    print(table + f"\nThe first one: --preset {path / 'preset.yaml'}")


def plot(trials: list[Trial]) -> bytes:
    """Change over the share that flipped, the larger the dearer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    best = front(trials)
    colours = ["tab:red" if trial in best else "tab:grey" for trial in trials]
    axes.scatter([t.flip for t in trials], [t.change for t in trials], [t.evaluations for t in trials], colours)
    axes.set(
        xlabel="share that flipped", ylabel="mean change, 0 to 1", title="red: nothing beats it; size: evaluations"
    )
    return png(figure)


if __name__ == "__main__":
    run(main)
