"""The metric scripts as commands: the published lines, what they print and write, and what they refuse."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.metrics.scripts import metric_parser
from tests.metric_world import EXPERIMENTS, MetricWorld, run_script
from tests.worlds import Run

ROOT = Path(__file__).parent.parent
SCRIPTS = ("compute_FVA", "compute_MNAC", "compute_CD", "compute_LPIPS", "compute_COUT", "compute_FID", "evaluate")


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def shared(metric_world: MetricWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree that is not spoilt."""
    return metric_world.small_tree(tmp_path_factory.mktemp("small"))


@pytest.fixture
def small(metric_world: MetricWorld, tmp_path: Path) -> Path:
    """A small tree that a test may spoil."""
    return metric_world.small_tree(tmp_path / "tree")


def arguments(name: str, world: MetricWorld, tree: Path, exp: str = "expA") -> list[object]:
    """A published command line of a script (what the published code lacks: in the same style)."""
    at = ["--gpu", "cpu", "--output-path", tree]
    query = ["--query-label", 31]
    return (
        at
        + {
            "compute_FVA": ["--exp-name", exp, "--weights-path", world.faces],
            "compute_MNAC": ["--exp-name", exp, "--oracle-path", world.oracle],
            "compute_CD": ["--exp-name", exp, "--oracle-path", world.oracle, "--celeba-path", world.celeba],
            "compute_LPIPS": ["--exp-pattern", "exp*", "--exp-values", "A", "B", "C"],
            "compute_COUT": ["--exp-name", exp, "--classifier-path", world.classifier, *query],
            "compute_FID": ["--exp-name", exp, "--feature-network", "oracle", "--oracle-path", world.oracle],
            "evaluate": ["--exp-name", exp],
        }[name]
    )


PRINTED = {
    "compute_FVA": ["FVA", "mean dist"],
    "compute_MNAC": ["MNAC:"],
    "compute_CD": ["CD Result:"],
    "compute_LPIPS": ["sigma_L result:"],
    "compute_COUT": ["COUT:"],
    "compute_FID": ["Frechet distance (oracle features):", "split Frechet distance (oracle features):"],
}


def succeeded(run: Run) -> Run:
    assert run.code == 0, run.err
    return run


def refused(run: Run) -> str:
    """The one line of a command that was refused."""
    assert run.code == 2, (run.out, run.err)
    assert run.err.count("\n") == 1 and run.err.endswith("\n") and "Traceback" not in run.err
    assert run.out == ""
    return run.err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    assert "--partition" in succeeded(run_script(script(name), "--help")).out


@pytest.mark.parametrize("name", PRINTED)
def test_published_command(name, metric_world, shared, tmp_path):
    """Each prints its lines, `name value`, and writes the same numbers as JSON."""
    command = [*arguments(name, metric_world, shared), "--json", tmp_path / "folder" / "result.json"]
    run = succeeded(run_script(script(name), *command))
    lines = dict(line.rsplit(" ", 1) for line in run.out.splitlines())
    assert list(lines) == PRINTED[name]
    written = json.loads((tmp_path / "folder" / "result.json").read_text())
    assert [measurement["value"] for measurement in written.values()] == [float(value) for value in lines.values()]


# what is printed, in closed form: images of one grey each, and networks that see nothing but that grey

GREYS = {
    0: ("CC/CCF", 20, 20, 90, 30),
    1: ("IC/CCF", 100, 160, 90, 200),
    2: ("CC/CCF", 40, 160, 60, 40),
    3: ("CC/CCF", 250, 75, 33, 110),
    4: ("IC/CCF", 17, 181, 12, 9),
    5: ("CC/CCF", 210, 133, 230, 140),
    6: ("CC/ICF", 5, 250, 80, 255),
    7: ("IC/ICF", 230, 7, 3, 128),
}
"""Id -> folders, grey of the input, and of the counterfactual in expA, expB and expC."""
FLIPPED = np.array([greys for folder, *greys in GREYS.values() if folder.endswith("CCF")])
ATTRIBUTES, SMILING = 40, 31


@pytest.fixture
def grey_tree(tmp_path: Path) -> Path:
    """The tree of GREYS; a flat image survives JPEG."""
    for id, (folder, *greys) in GREYS.items():
        original = "Original/Correct" if folder.startswith("CC") else "Original/Incorrect"
        folders = [original, *(f"Results/{exp}/{folder}/CF" for exp in EXPERIMENTS)]
        for place, grey in zip(folders, greys, strict=True):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / place / f"{id:07d}.jpg")
    return tmp_path


def grey_of(x: torch.Tensor) -> torch.Tensor:
    """The grey (N, 1), 0 to 255, of flat images in [-1, 1]."""
    return (x.mean((1, 2, 3))[:, None] + 1) * 127.5


def decisions(grey: np.ndarray) -> np.ndarray:
    """What the stand-in for the oracle decides on each of 40 attributes: some pattern of the grey."""
    return (np.sin(np.outer(grey, 1 + np.arange(ATTRIBUTES)) / 60) > 0).astype(int)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Stand-ins for the networks; the files that they were to be read from."""
    files: list[str] = []

    def load_vggface2(path, device):
        def direction(x: torch.Tensor) -> torch.Tensor:
            angle = (x[:, :1].mean((2, 3)) + 91.4953) / 100  # the mean of blue, the network's first channel
            return torch.cat([angle.cos(), angle.sin()], dim=1)

        files.append(str(path))
        return direction

    def load_oracle(path, device):
        files.append(str(path))
        return lambda x: (None, torch.sin(grey_of(x) * (1 + torch.arange(ATTRIBUTES)) / 60))

    monkeypatch.setattr("dime.core.metrics.faces.load_vggface2", load_vggface2)
    monkeypatch.setattr("dime.core.metrics.mnac.load_oracle", load_oracle)
    return files


def printed(name: str, tree: Path, *arguments: object) -> list[tuple[str, float]]:
    """The lines of a script on stdout, each a name and a value."""
    run = succeeded(run_script(script(name), "--gpu", "cpu", "--output-path", tree, *arguments))
    return [(label, float(value)) for label, _, value in (line.rpartition(" ") for line in run.out.splitlines())]


def test_fva_prints_the_share_and_then_the_mean_of_the_cosines(grey_tree, asked):
    cosines = np.cos((FLIPPED[:, 1] - FLIPPED[:, 0]) / 100)
    share = float((cosines > 0.5).mean())
    assert share not in (0, 1, pytest.approx(cosines.mean()))
    lines = printed("compute_FVA", grey_tree, "--exp-name", "expA")
    assert lines == [("FVA", share), ("mean dist", pytest.approx(cosines.mean(), abs=1e-5))]  # float32
    assert asked == ["models/resnet50_vggface2_model.pkl"]


def test_mnac_prints_the_mean_number_of_attributes_that_differ(grey_tree, asked):
    changed = decisions(FLIPPED[:, 0]) != decisions(FLIPPED[:, 2])
    expected = changed.sum(axis=1).mean()
    assert 0 < expected < ATTRIBUTES
    assert printed("compute_MNAC", grey_tree, "--exp-name", "expB") == [("MNAC:", pytest.approx(expected))]
    assert asked == ["models/oracle.pth"]


@pytest.mark.parametrize(("flags", "query"), [([], SMILING), (["--query-label", 39], 39)])
def test_cd_is_that_of_smiling_unless_said_otherwise(grey_tree, asked, monkeypatch, flags, query):
    labels = np.random.default_rng(0).integers(0, 2, (50, ATTRIBUTES))
    monkeypatch.setattr("dime.core.metrics.cd.train_labels", lambda path: labels if path == "celeba" else None)
    changes = decisions(FLIPPED[:, 1]) - decisions(FLIPPED[:, 0])
    with np.errstate(invalid="ignore"):  # an attribute that never changes
        of_changes = np.nan_to_num(np.corrcoef(changes.T))
    differences = np.abs(of_changes - np.corrcoef(labels.T)).sum(axis=1)
    assert differences[39] != pytest.approx(differences[SMILING], abs=0.1)
    lines = printed("compute_CD", grey_tree, "--exp-name", "expA", "--celeba-path", "celeba", *flags)
    assert lines == [("CD Result:", pytest.approx(differences[query]))]
    assert asked == ["models/oracle.pth"]


def test_sigma_l_prints_the_mean_over_all_pairs_of_experiments(grey_tree, monkeypatch):
    class Squares:
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return grey_of(x)

        def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).square()[:, 0]

    monkeypatch.setattr("dime.core.metrics.sigma_l.load_lpips", lambda device: Squares())
    elsewhere = grey_tree / "Results" / "expC" / "IC" / "CCF" / "CF" / "0000004.jpg"  # then it does not count
    elsewhere.rename(grey_tree / "Results" / "expC" / "IC" / "ICF" / "CF" / "0000004.jpg")
    a, b, c = np.array([greys[1:] for id, (_, *greys) in GREYS.items() if id != 4], float).T
    expected = ((a - b) ** 2 + (a - c) ** 2 + (b - c) ** 2).mean() / 3
    lines = printed("compute_LPIPS", grey_tree, "--exp-pattern", "exp*", "--exp-values", "A", "B", "C")
    assert lines == [("sigma_L result:", pytest.approx(expected, rel=1e-5))]  # float32


def test_cout_is_that_of_smiling_and_of_correctly_classified_images(grey_tree, monkeypatch):
    class Brightness(torch.nn.Module):
        num_outputs, attributes = ATTRIBUTES, None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (grey_of(x) - 128) / 50 * torch.eye(ATTRIBUTES)[SMILING] + 1

    monkeypatch.setattr("dime.core.metrics.metric.load_classifier", lambda path, device: Brightness())
    areas = []
    for folder, first, last, *_ in GREYS.values():
        if folder.startswith("CC"):
            grey = np.linspace(first, last, 65)  # 64 pixels, one at a time
            p = 1 / (1 + np.exp(-((grey - 128) / 50 + 1)))
            own = p if p[0] > 0.5 else 1 - p
            areas.append(((1 - 2 * own)[1:] + (1 - 2 * own)[:-1]).mean() / 2)
    lines = printed("compute_COUT", grey_tree, "--exp-name", "expA")
    assert lines == [("COUT:", pytest.approx(np.mean(areas), abs=1e-5))]  # float32


def test_defaults_that_all_scripts_share():
    flags = ("--weights-path", "--oracle-path", "--classifier-path")
    args = metric_parser("", *flags).parse_args(["--output-path", "out", "--exp-name", "exp"])
    assert (args.gpu, args.partition) == ("0", "all")
    assert str(args.weights_path) == "models/resnet50_vggface2_model.pkl"
    assert str(args.oracle_path) == "models/oracle.pth"
    assert str(args.classifier_path) == "models/classifier.pth"


# flags, files and remarks


def test_underscores_hyphens_and_device(metric_world, shared):
    hyphens = [str(part).replace("--gpu", "--device") for part in arguments("compute_LPIPS", metric_world, shared)]
    underscores = ["--" + part[2:].replace("-", "_") if part.startswith("--") else part for part in hyphens]
    outputs = {succeeded(run_script(script("compute_LPIPS"), *command)).out for command in (hyphens, underscores)}
    assert len(outputs) == 1


def test_plots_are_images(metric_world, small, tmp_path):
    """By default in the experiment's folder, with --plot anywhere."""
    succeeded(run_script(script("compute_CD"), *arguments("compute_CD", metric_world, small)))
    elsewhere = tmp_path / "elsewhere" / "curves.png"
    command = [*arguments("compute_COUT", metric_world, small), "--partition", "inc", "--plot", elsewhere]
    succeeded(run_script(script("compute_COUT"), *command))
    for path in (small / "Results" / "expA" / "CD.png", elsewhere):
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300


def test_partition(metric_world, shared):
    counts = {}
    for partition in ("cor", "inc", "all"):
        path = shared / f"{partition}.json"
        command = arguments("compute_LPIPS", metric_world, shared)
        succeeded(run_script(script("compute_LPIPS"), *command, "--partition", partition, "--json", path))
        counts[partition] = json.loads(path.read_text())["sigma_L"]["n"]
    assert counts["cor"] + counts["inc"] == counts["all"] and min(counts.values()) > 0


def test_fid_script_takes_the_published_arguments(metric_world, small):
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", ROOT / "compute-fid.sh", small, "expA", "cpu", "--inception-weights", metric_world.inception]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=small, check=False)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert list(lines) == ["FID", "sFID"] and float(lines["sFID"]) > 0
    assert "fewer than 2048" in done.stderr

    command[3] = "nothing"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=small, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "expA, expB, expC" in done.stderr


@pytest.mark.parametrize("command", [[], ["only-one"]])
def test_fid_script_without_arguments(command):
    done = subprocess.run(["bash", ROOT / "compute-fid.sh", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "OUTPUT_PATH EXP_NAME" in done.stderr


# bad input


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_such_experiment(name, metric_world, shared):
    command = arguments(name, metric_world, shared, exp="expX")
    if name == "compute_LPIPS":
        command += ["--exp-values", "A", "X"]
    message = refused(run_script(script(name), *command))
    assert "expX" in message and "expA, expB, expC" in message


@pytest.mark.parametrize("name", SCRIPTS)
def test_spoilt_trees(name, metric_world, small):
    """What is wrong with a tree is said by every script, in one line that names the file."""
    command = arguments(name, metric_world, small)
    path = sorted(small.glob("Results/expA/CC/CCF/CF/*.jpg"))[1]
    intact = path.read_bytes()

    path.write_bytes(b"no image")
    assert path.name in refused(run_script(script(name), *command))
    Image.new("RGB", (32, 32)).save(path)
    assert "32x32" in refused(run_script(script(name), *command))
    path.write_bytes(intact)

    original = next((small / "Original").glob(f"*/{path.name}"))
    original.rename(small / path.name)
    assert path.stem in refused(run_script(script(name), *command))
    (small / path.name).rename(original)

    for path in small.glob("Results/expA/*/*/CF/*.jpg"):
        path.unlink()
    assert "no counterfactual" in refused(run_script(script(name), *command))


@pytest.mark.parametrize("name", [name for name in PRINTED if name != "compute_LPIPS"])
def test_missing_weights(name, metric_world, shared, tmp_path):
    flag = {"compute_FVA": "--weights-path", "compute_COUT": "--classifier-path"}.get(name, "--oracle-path")
    command = [*arguments(name, metric_world, shared), flag, tmp_path / "absent.pth"]
    assert "absent.pth" in refused(run_script(script(name), *command))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--exp-values", "A"], "at least two different values"),
        (["--exp-values", "A", "A"], "at least two different values"),
        (["--exp-pattern", "exp"], "expected a name with one *"),
        (["--exp-pattern", "*exp*"], "expected a name with one *"),
    ],
)
def test_seeds_that_make_no_sense(metric_world, shared, flags, expected):
    command = [*arguments("compute_LPIPS", metric_world, shared), *flags]
    assert expected in refused(run_script(script("compute_LPIPS"), *command))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--partition", "both"], "'cor', 'inc', 'all'"),
        (["--batch-size", "0"], "at least 1"),
        (["--query-label", "40"], "0 to 39"),
        (["--query-label", "Smile"], "Smiling"),
        (["--gpu", "tpu9"], "tpu9"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_bad_flags(metric_world, shared, flags, expected):
    run = run_script(script("compute_COUT"), *arguments("compute_COUT", metric_world, shared), *flags)
    assert run.code == 2 and expected in run.err and run.err.count("\n") == 1


def test_a_result_that_cannot_be_written(metric_world, shared, tmp_path):
    (tmp_path / "file").touch()
    command = [*arguments("compute_LPIPS", metric_world, shared), "--json", tmp_path / "file" / "result.json"]
    run = run_script(script("compute_LPIPS"), *command)
    assert run.code == 2 and "result.json: cannot be written" in run.err


def test_a_tree_that_cannot_be_written_to(metric_world, small, tmp_path):
    """What stands in the place of a report ends nothing, and a flag puts the report elsewhere."""
    folder = small / "Results" / "expA"
    for name in ("evaluation.md", "evaluation.csv", "evaluation.json"):
        (folder / name).mkdir()
    command = [*arguments("evaluate", metric_world, small), "--feature-network", "oracle"]
    command += [
        part for flag in ("--weights", "--oracle", "--classifier") for part in (f"{flag}-path", tmp_path / "no")
    ]
    run = succeeded(run_script(script("evaluate"), *command))
    assert "| flip rate" in run.out and run.err.count("--report-path FOLDER puts it elsewhere") == 3
    run = succeeded(run_script(script("evaluate"), *command, "--report-path", tmp_path / "reports"))
    assert run.err == "" and (tmp_path / "reports/expA/evaluation.md").read_text() == run.out


def test_classifier_without_the_query(metric_world, shared, tmp_path):
    content = torch.load(metric_world.classifier)
    content["classifier"] = {name: value[:5] for name, value in content["classifier"].items()}
    torch.save(content, tmp_path / "five.pth")
    command = [*arguments("compute_COUT", metric_world, shared), "--classifier-path", tmp_path / "five.pth"]
    assert "5 outputs" in refused(run_script(script("compute_COUT"), *command))


def test_celeba_folder_that_is_none(metric_world, shared, tmp_path):
    command = [*arguments("compute_CD", metric_world, shared), "--celeba-path", tmp_path]
    assert "list_eval_partition" in refused(run_script(script("compute_CD"), *command))


# the whole protocol


def test_evaluate_with_everything(metric_world, small, tmp_path):
    run = succeeded(
        run_script(
            script("evaluate"),
            *["--output-path", small, "--gpu", "cpu", "--query-label", "Smiling", "--json", tmp_path / "all.json"],
            *["--exp-pattern", "exp*", "--exp-values", "A", "B"],
            *["--weights-path", metric_world.faces, "--oracle-path", metric_world.oracle],
            *["--classifier-path", metric_world.classifier, "--celeba-path", metric_world.celeba],
            *["--inception-weights", metric_world.inception, "--papers", "DiME"],
        )
    )
    rows = [line.split("|")[1].strip() for line in run.out.splitlines() if line.startswith("| ")]
    metrics = ["flip rate", "FVA", "FS", "MNAC", "CD", "MAD", "COUT", "FID", "sFID", "sigma_L"]
    assert rows[0] == "metric" and rows[2:] == metrics
    assert "Not computed" not in run.out and "fewer than 2048" in run.out and "JPEG" in run.out
    together = json.loads((tmp_path / "all.json").read_text())["measurements"]
    for exp in ("expA", "expB"):
        folder = small / "Results" / exp
        own = json.loads((folder / "evaluation.json").read_text())["measurements"]
        assert own == {exp: together[exp]} and list(own[exp]) == metrics
        assert (folder / "evaluation.md").read_text().startswith("| metric")
        assert len((folder / "evaluation.csv").read_text().splitlines()) == 1 + len(metrics)
    assert not (small / "Results/expC/evaluation.json").exists()


def test_evaluate_with_what_is_there(metric_world, small, tmp_path):
    """Metrics whose weights are absent, and those of nothing flipped, are listed with the reason."""
    for path in small.glob("Results/expB/*/CCF/CF/*.jpg"):
        path.rename(path.parents[2] / "ICF" / "CF" / path.name)
    absent = tmp_path / "absent.pth"
    run = succeeded(
        run_script(
            script("evaluate"),
            *["--output-path", small, "--gpu", "cpu", "--exp-name", *EXPERIMENTS[:2]],
            *["--weights-path", absent, "--oracle-path", metric_world.oracle, "--feature-network", "oracle"],
            *["--classifier-path", absent],
        )
    )
    listed = [line for line in run.out.splitlines() if line.startswith("- ")]
    for metric, reason in {
        "FVA, FS": "absent.pth",
        "MAD": "absent.pth",
        "COUT": "absent.pth",
        "CD": "--celeba-path",
        "sigma_L": "--exp-pattern",
        "MNAC of expB": "undefined: none of the 12 pairs of expB is of an image whose counterfactual reached",
    }.items():
        assert any(line.startswith(f"- {metric}: ") and reason in line for line in listed), metric
    assert "Frechet distance (oracle features)" in run.out and "FID" not in run.out.split("Not computed")[0]


def test_evaluate_measures_the_attribute_that_each_run_explained(metric_world, small):
    def mad(*flags: str) -> dict[str, str]:
        run = succeeded(
            run_script(
                script("evaluate"),
                *["--output-path", small, "--gpu", "cpu", "--exp-name", "expA", "expB", *flags],
                *["--classifier-path", metric_world.classifier, "--oracle-path", small / "none.pth"],
                *["--weights-path", small / "none.pkl", "--feature-network", "oracle"],
            )
        )
        cells = next(line for line in run.out.splitlines() if line.startswith("| MAD")).split("|")
        return {"expA": cells[2], "expB": cells[3]}

    smile, young = mad("--query-label", "31"), mad("--query-label", "39")
    assert smile["expB"] != young["expB"]
    (small / "Results/expB/config.yaml").write_text("query_label: 39\n")
    assert mad() == {"expA": smile["expA"], "expB": young["expB"]}
    assert mad("--query-label", "31") == smile


def test_evaluate_needs_an_experiment(shared):
    assert "no experiment is named" in refused(run_script(script("evaluate"), "--output-path", shared))


def test_evaluate_names_the_papers(shared):
    run = run_script(script("evaluate"), "--output-path", shared, "--exp-name", "expA", "--papers", "Nobody")
    assert run.code == 2 and "'DiME'" in run.err and "'MaskDiME'" in run.err
