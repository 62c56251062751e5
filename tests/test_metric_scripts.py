"""The metric scripts as commands: the published lines, what they print and write, and what they refuse."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from dime.core.metrics.features import Machine
from dime.core.metrics.metric import Context
from dime.core.metrics.protocol import evaluate
from dime.core.metrics.scripts import metric_parser
from tests.grey_world import BOTH_WAYS, make_tree, stand_ins
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
    "compute_FVA": {"FVA": "FVA", "FS": "mean dist"},
    "compute_MNAC": {"MNAC": "MNAC:"},
    "compute_CD": {"CD": "CD Result:"},
    "compute_LPIPS": {"sigma_L": "sigma_L result:"},
    "compute_COUT": {"COUT": "COUT:"},
    "compute_FID": {"FID": "FID:", "sFID": "sFID:"},
}
"""Script -> row of the table -> what it prints the number as."""


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


@pytest.fixture
def networks(monkeypatch) -> dict[str, object]:
    return stand_ins(monkeypatch)


@pytest.mark.parametrize("name", PRINTED)
def test_published_command(name, networks, tmp_path):
    """Each prints its lines, `name value`, with the numbers of the whole protocol, and writes them as JSON."""
    trees = make_tree(tmp_path, [*BOTH_WAYS, ("IC/CCF", 10, 200), ("CC/ICF", 220, 170)], seeds=True)
    (tmp_path / "weights").touch()
    at = ["--gpu", "cpu", "--output-path", tmp_path, "--json", tmp_path / "folder" / "result.json"]
    flags = {
        "compute_CD": ["--celeba-path", "celeba"],
        "compute_LPIPS": ["--exp-pattern", "*", "--exp-values", "a", "b"],
        "compute_FID": ["--inception-weights", tmp_path / "weights"],
    }.get(name, [])
    if name != "compute_LPIPS":
        flags += ["--exp-name", "a"]
    run = succeeded(run_script(script(name), *at, *flags))
    lines = [line.rsplit(" ", 1) for line in run.out.splitlines()]
    context = Context(
        Machine(torch.device("cpu")), seeds=trees, celeba_path="celeba", inception_weights=tmp_path / "weights"
    )
    expected = evaluate(context, trees).measurements["a"]
    assert {row: label for row, (label, _) in zip(PRINTED[name], lines, strict=True)} == PRINTED[name]
    assert [float(value) for _, value in lines] == [expected[row].value for row in PRINTED[name]]
    written = json.loads((tmp_path / "folder" / "result.json").read_text())
    assert [m["value"] for m in written.values()] == [expected[row].value for row in written]
    assert list(written) == list(PRINTED[name])


def test_defaults_that_all_scripts_share():
    flags = ("--weights-path", "--oracle-path")
    args = metric_parser("", *flags).parse_args(["--output-path", "out", "--exp-name", "exp"])
    assert (args.gpu, args.partition) == ("0", "all")
    assert str(args.weights_path) == "models/resnet50_vggface2_model.pkl"
    assert str(args.oracle_path) == "models/oracle.pth"


# flags, files and remarks


def test_underscores_hyphens_and_device(networks, metric_world, shared):
    hyphens = [str(part).replace("--gpu", "--device") for part in arguments("compute_LPIPS", metric_world, shared)]
    underscores = ["--" + part[2:].replace("-", "_") if part.startswith("--") else part for part in hyphens]
    outputs = {succeeded(run_script(script("compute_LPIPS"), *command)).out for command in (hyphens, underscores)}
    assert len(outputs) == 1


def test_plots_are_images(networks, metric_world, small, tmp_path):
    """By default in the experiment's folder, with --plot anywhere."""
    succeeded(run_script(script("compute_CD"), *arguments("compute_CD", metric_world, small)))
    elsewhere = tmp_path / "elsewhere" / "curves.png"
    command = [*arguments("compute_COUT", metric_world, small), "--partition", "inc", "--plot", elsewhere]
    succeeded(run_script(script("compute_COUT"), *command))
    for path in (small / "Results" / "expA" / "CD.png", elsewhere):
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300


def test_partition(networks, metric_world, shared):
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


def test_a_result_that_cannot_be_written(networks, metric_world, shared, tmp_path):
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
