"""The result tree: every rule about where a file lies, and the reader that the metrics use.

    OUTPUT_PATH/Original/{Correct,Incorrect}/0000012.jpg
    OUTPUT_PATH/Results/EXP_NAME/{CC,IC}/{CCF,ICF}/{CF,Noise,SM}/0000012.jpg and Info/0000012.txt
    OUTPUT_PATH/Results/EXP_NAME/[chunk-c_num-chunks-C_]{summary.yaml,stats.pth,config.yaml}
    OUTPUT_PATH/{x_t,z_t}/EXP_NAME/000012/0000.jpg ...

CC/IC: the input is classified correctly / incorrectly; CCF/ICF: the counterfactual reached its target / did not.
"""

from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from dime.core.errors import InputError
from dime.core.files import read_yaml

IMAGE_FORMATS = ("jpg", "png")
FRAME_KINDS = ("x_t", "z_t")
CELL_FOLDERS = ("CF", "Noise", "SM", "Info")


def cell_name(correct: bool, flipped: bool) -> str:
    """The quarter of the tree that an image belongs to, for example CC/CCF."""
    return f"{'CC' if correct else 'IC'}/{'CCF' if flipped else 'ICF'}"


CELLS = tuple(cell_name(*decisions) for decisions in product((True, False), repeat=2))


@dataclass(frozen=True)
class Pair:
    """An input and its counterfactual on disk."""

    id: int
    correct: bool
    flipped: bool
    original: Path
    counterfactual: Path
    info: Path


@dataclass(frozen=True)
class ResultTree:
    """The files of one experiment; the originals are shared by all experiments under one output_path."""

    output_path: Path
    exp_name: str
    image_format: str = "jpg"

    @property
    def results(self) -> Path:
        """The experiment's own folder."""
        return self.output_path / "Results" / self.exp_name

    def original(self, id: int, correct: bool) -> Path:
        """Where the input lies that was classified correctly or not."""
        return self._originals[not correct] / f"{id:07d}.{self.image_format}"

    def stored_originals(self, id: int) -> list[Path]:
        """The files under which input `id` lies there already, in any format: none, one, or one in each folder."""
        candidates = (folder / f"{id:07d}.{suffix}" for folder in self._originals for suffix in IMAGE_FORMATS)
        return [path for path in candidates if path.exists()]

    def originals(self) -> list[Path]:
        """Every stored input once, ordered by id."""
        # one may lie in both
        by_id = {int(path.stem): path for folder in self._originals for path in image_files(folder)}
        return [by_id[id] for id in sorted(by_id)]

    def original_features(self, network: str) -> Path:
        """Where the features of all inputs are kept for the next experiment's metrics."""
        return self.output_path / "Original" / f"features-{network}.npz"

    def image(self, kind: str, id: int, correct: bool, flipped: bool) -> Path:
        """Where an image of kind CF, Noise or SM lies."""
        return self.results / cell_name(correct, flipped) / kind / f"{id:07d}.{self.image_format}"

    def info(self, id: int, correct: bool, flipped: bool) -> Path:
        """Where the text about an image lies; it is written last."""
        return self.results / cell_name(correct, flipped) / "Info" / f"{id:07d}.txt"

    def frame(self, kind: str, id: int, step: int) -> Path:
        """Where the x_t or z_t at the start of outer step `step` (from 0) lies."""
        return self.frame_folder(kind, id) / f"{step:04d}.{self.image_format}"

    def frame_folder(self, kind: str, id: int) -> Path:
        """Where the frames of an image lie."""
        return self.output_path / kind / self.exp_name / f"{id:06d}"

    def report(self, name: str, num_chunks: int = 1, chunk: int = 0) -> Path:
        """Where a file about a whole run (summary.yaml, stats.pth, config.yaml) lies."""
        prefix = f"chunk-{chunk}_num-chunks-{num_chunks}_" if num_chunks != 1 else ""
        return self.results / (prefix + name)

    def reports(self, name: str) -> list[Path]:
        """The files of this name about the whole and about chunks, of any number of them, that are there."""
        chunks = self.results.glob(f"chunk-*_num-chunks-*_{name}")
        return sorted(path for path in (self.results / name, *chunks) if path.is_file())

    def configurations(self) -> list[dict[str, Any]]:
        """The flags of the runs behind the experiment (one, or its chunks), where their config.yaml lies there."""
        found = []
        for path in self.reports("config.yaml"):
            with suppress(FileNotFoundError, ValueError):
                found.append(read_yaml(path))
        return [config for config in found if isinstance(config, dict)]

    def recorded(self, flag: str) -> set:
        """The values of a flag in the runs behind the experiment; lists as tuples of texts."""
        values = [config[flag] for config in self.configurations() if flag in config]
        values = [tuple(map(str, value)) if isinstance(value, list) else value for value in values]
        return {value for value in values if isinstance(value, (str, int, float, tuple))}

    def folders(self) -> list[Path]:
        """Every folder that all images share."""
        return [*self._originals, *self.cell_folders()]

    def cell_folders(self) -> list[Path]:
        """The folders of this experiment alone."""
        return [self.results / cell / kind for cell in CELLS for kind in CELL_FOLDERS]

    def create(self) -> None:
        """Make every folder of the tree. Raises InputError where that is impossible."""
        for folder in self.folders():
            make_folder(folder)

    def pairs(self) -> list[Pair]:
        """Every counterfactual with its input, ordered by id.

        Raises InputError if there is no such experiment, a counterfactual lacks its input, or an id occurs twice.
        """
        if not any((self.results / cell / "CF").is_dir() for cell in CELLS):
            root = self.output_path / "Results"
            found = sorted({str(cell.parent.relative_to(root)) for cell in root.rglob("CC") if cell.is_dir()})
            known = f"; experiments there: {', '.join(found)}" if found else ""
            raise InputError(f"{self.results}: no experiment lies there{known}")
        pairs = []
        for correct, flipped in product((True, False), repeat=2):
            for path in image_files(self.results / cell_name(correct, flipped) / "CF"):
                id = int(path.stem)
                originals = self.stored_originals(id)
                if not originals:
                    raise InputError(f"{path}: its input {id:07d} is not in {self.output_path / 'Original'}")
                # trees of other programs may hold one id in both folders: the same kind's is the input then
                original = min(originals, key=lambda path: path.parent != self._originals[not correct])
                pairs.append(Pair(id, correct, flipped, original, path, self.info(id, correct, flipped)))
        pairs.sort(key=lambda pair: pair.id)
        for first, second in pairwise(pairs):
            if first.id == second.id:
                raise InputError(f"{first.counterfactual} and {second.counterfactual}: one id, two counterfactuals")
        return pairs

    @property
    def _originals(self) -> tuple[Path, Path]:
        return self.output_path / "Original" / "Correct", self.output_path / "Original" / "Incorrect"


def image_files(folder: Path) -> list[Path]:
    """The images of a folder that are named by an id; an absent folder has none."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.suffix[1:] in IMAGE_FORMATS and path.stem.isdecimal()]


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises InputError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot make this folder ({error.strerror})") from None
