"""The metric scripts as commands: the published lines, what they print and write, and what they refuse."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from dime.core.metrics.cd import train_labels
from dime.core.metrics.features import Machine
from dime.core.metrics.metric import Context
from dime.core.metrics.protocol import evaluate
from dime.core.metrics.scripts import metric_parser
from tests.helpers import CPU
from tests.metric_world import BOTH_WAYS, make_tree
from tests.worlds import ROOT, refusal, run_command, run_script, succeeded

PRINTED = {
    "compute_FVA": {"FVA": "FVA", "FS": "mean dist"},
    "compute_MNAC": {"MNAC": "MNAC:"},
    "compute_CD": {"CD": "CD Result:"},
    "compute_LPIPS": {"sigma_L": "sigma_L result:"},
    "compute_COUT": {"COUT": "COUT:"},
    "compute_FID": {"FID": "FID:", "sFID": "sFID:"},
}
"""Script -> row of the table -> what it prints the number as."""
SCRIPTS = (*PRINTED, "evaluate")
IMAGES = [*BOTH_WAYS, ("IC/CCF", 10, 200), ("CC/ICF", 220, 170)]
METRICS = ["flip rate", "FVA", "FS", "MNAC", "CD", "MAD", "COUT", "FID", "sFID", "sigma_L"]


def arguments(name: str, tree: Path, exp: str = "expA") -> list[object]:
    """A command line for a tree that is refused before any network is loaded."""
    seeds = ["--exp-pattern", "exp*", "--exp-values", exp[-1], "B", "C"]
    return ["--gpu", "cpu", "--output-path", tree, *(seeds if name == "compute_LPIPS" else ["--exp-name", exp])]


@pytest.mark.parametrize("name", PRINTED)
def test_published_command(name, networks, tmp_path):
    """Each prints its lines, `name value`, with the numbers of the whole protocol, and writes them as JSON."""
    trees, weights = make_tree(tmp_path, IMAGES, seeds=True), tmp_path / "weights"
    weights.touch()
    flags = {
        "compute_CD": ["--celeba-path", "celeba"],
        "compute_LPIPS": ["--exp-pattern", "*", "--exp-values", "a", "b"],
        "compute_FID": ["--inception_weights", weights],
        "compute_COUT": ["--plot", tmp_path / "plots" / "curves.png", "--classifier-path", "any"],
    }.get(name, [])
    flags += ["--exp-name", "a"] if name != "compute_LPIPS" else []
    json_file = tmp_path / "folder" / "result.json"
    done = succeeded(run_script(name, "--device", "cpu", "--output-path", tmp_path, "--json", json_file, *flags))
    lines = [line.rsplit(" ", 1) for line in done.out.splitlines()]
    context = Context(Machine(CPU), seeds=trees, celeba_path="celeba", inception_weights=weights)
    expected = evaluate(context, trees).measurements["a"]
    assert {row: label for row, (label, _) in zip(PRINTED[name], lines, strict=True)} == PRINTED[name]
    assert [float(value) for _, value in lines] == [expected[row].value for row in PRINTED[name]]
    written = json.loads(json_file.read_text())
    assert list(written) == list(PRINTED[name])
    assert [m["value"] for m in written.values()] == [expected[row].value for row in written]
    plots = {"compute_CD": tmp_path / "Results/a/CD.png", "compute_COUT": tmp_path / "plots/curves.png"}
    if name in plots:  # by default in the experiment's folder, with --plot anywhere
        with Image.open(plots[name]) as image:
            assert image.format == "PNG" and min(image.size) > 300


def test_published_defaults_and_the_arguments_of_compute_fid(metric_world, small):
    options = {"env": {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}, "cwd": small}
    command = ["bash", ROOT / "compute-fid.sh", small, "expA", "cpu", "--inception-weights", metric_world.inception]
    done = succeeded(run_command(command, **options))
    lines = dict(line.split(": ") for line in done.out.splitlines())
    assert list(lines) == ["FID", "sFID"] and float(lines["sFID"]) > 0 and "fewer than 2048" in done.err
    assert "OUTPUT_PATH EXP_NAME" in refusal(run_command([*command[:2], "only-one"], **options))
    args = metric_parser("", "--weights-path", "--oracle-path").parse_args(["--output-path", "out", "--exp-name", "e"])
    assert (args.gpu, args.partition) == ("0", "all")
    assert str(args.weights_path) == "models/resnet50_vggface2_model.pkl"
    assert str(args.oracle_path) == "models/oracle.pth"


@pytest.mark.parametrize("name", SCRIPTS)
def test_spoilt_trees(name, small):
    """What is wrong with a tree is said by every script, in one line that names the file, before networks load."""
    message = refusal(run_script(name, *arguments(name, small, "expX")))
    assert "expX" in message and "expA, expB, expC" in message
    command = arguments(name, small)
    path = sorted(small.glob("Results/expA/CC/CCF/CF/*.jpg"))[1]
    intact = path.read_bytes()
    path.write_bytes(b"no image")
    assert path.name in refusal(run_script(name, *command))
    Image.new("RGB", (32, 32)).save(path)
    assert "32x32" in refusal(run_script(name, *command))
    path.write_bytes(intact)
    original = next((small / "Original").glob(f"*/{path.name}"))
    original.rename(small / path.name)
    assert path.stem in refusal(run_script(name, *command))
    (small / path.name).rename(original)
    for path in small.glob("Results/expA/*/*/CF/*.jpg"):
        path.unlink()
    assert "no counterfactual" in refusal(run_script(name, *command))


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("compute_FVA", ["--weights-path", "absent.pkl"], "absent.pkl"),
        ("compute_FID", ["--feature-network", "oracle", "--oracle-path", "absent.pth"], "absent.pth"),
        ("compute_LPIPS", ["--exp-values", "A", "A"], "at least two different values"),
        ("compute_LPIPS", ["--exp-pattern", "*exp*"], "expected a name with one *"),
        ("compute_COUT", ["--partition", "both"], "'cor', 'inc', 'all'"),
        ("compute_COUT", ["--batch-size", "0"], "at least 1"),
        ("compute_COUT", ["--query-label", "Smile"], "Smiling"),
        ("compute_COUT", ["--gpu", "tpu9"], "tpu9"),
        ("evaluate", ["--papers", "Nobody"], "'MaskDiME'"),
    ],
)
def test_flags_that_make_no_sense(metric_world, name, flags, expected):
    assert expected in refusal(run_script(name, *arguments(name, metric_world.output_path), *flags))


def test_what_cannot_be_written_or_read(networks, tmp_path, monkeypatch):
    """What stands in the place of a report ends nothing, and a flag puts the report elsewhere."""
    make_tree(tmp_path, BOTH_WAYS)
    (tmp_path / "file").touch()
    done = run_script("compute_MNAC", *arguments("", tmp_path, "a"), "--json", tmp_path / "file" / "result.json")
    assert done.code == 2 and "file: cannot make this folder" in done.err
    assert "no experiment is named" in refusal(run_script("evaluate", "--output-path", tmp_path))
    monkeypatch.setattr("dime.core.metrics.cd.train_labels", train_labels)  # of a folder that is none
    command = [*arguments("", tmp_path, "a"), "--celeba-path", tmp_path]
    assert "list_eval_partition" in refusal(run_script("compute_CD", *command))
    for name in ("evaluation.md", "evaluation.csv", "evaluation.json"):
        (tmp_path / "Results/a" / name).mkdir()
    command = arguments("evaluate", tmp_path, "a")
    done = succeeded(run_script("evaluate", *command))
    assert "| flip rate" in done.out and done.err.count("--report-path FOLDER puts it elsewhere") == 3
    done = succeeded(run_script("evaluate", *command, "--report-path", tmp_path / "reports"))
    assert done.err == "" and (tmp_path / "reports/a/evaluation.md").read_text() == done.out


def test_evaluate_with_everything(networks, tmp_path):
    make_tree(tmp_path, IMAGES, seeds=True)
    (tmp_path / "weights").touch()
    arguments = [
        *["--output-path", tmp_path, "--gpu", "cpu", "--query-label", "Smiling", "--json", tmp_path / "all.json"],
        *["--exp-pattern", "*", "--exp-values", "a", "b", "--celeba-path", "celeba", "--papers", "DiME"],
    ]
    done = succeeded(run_script("evaluate", *arguments, "--inception-weights", tmp_path / "weights"))
    rows = [line.split("|")[1].strip() for line in done.out.splitlines() if line.startswith("| ")]
    assert rows == ["metric", "-" * len("flip rate"), *METRICS]
    assert "Not computed" not in done.out and "fewer than 2048" in done.out
    together = json.loads((tmp_path / "all.json").read_text())["measurements"]
    for exp in ("a", "b"):
        folder = tmp_path / "Results" / exp
        own = json.loads((folder / "evaluation.json").read_text())["measurements"]
        assert own == {exp: together[exp]} and list(own[exp]) == METRICS
        assert (folder / "evaluation.md").read_text().startswith("| metric")
        assert len((folder / "evaluation.csv").read_text().splitlines()) == 1 + len(METRICS)


def test_evaluate_with_what_is_there(tmp_path, small):
    for path in small.glob("Results/expB/*/CCF/CF/*.jpg"):
        path.rename(path.parents[2] / "ICF" / "CF" / path.name)
    absent = [word for flag in ("weights", "oracle", "classifier") for word in (f"--{flag}-path", tmp_path / "no.pth")]
    flags = [*absent, "--feature-network", "oracle"]
    done = succeeded(run_script("evaluate", *arguments("", small), "expB", *flags))
    listed = [line for line in done.out.splitlines() if line.startswith("- ")]
    for metric, reason in {
        **dict.fromkeys(("FVA, FS", "MNAC", "CD", "MAD", "COUT"), "no.pth"),
        "Frechet distance (oracle features), split Frechet distance (oracle features)": "no.pth",
        "sigma_L": "--exp-pattern",
    }.items():
        assert any(line.startswith(f"- {metric}: ") and reason in line for line in listed), metric
    assert "| flip rate" in done.out and "JPEG" in done.out


def test_evaluate_measures_what_each_run_explained(networks, tmp_path):
    def mad(*flags: str) -> list[str]:
        done = succeeded(run_script("evaluate", *arguments("", tmp_path, "a"), "b", *flags))
        return next(line for line in done.out.splitlines() if line.startswith("| MAD")).split("|")[2:4]

    make_tree(tmp_path, BOTH_WAYS)
    smile, young = mad("--query-label", "31"), mad("--query-label", "39")
    assert smile[0] == smile[1] != young[1]
    (tmp_path / "Results/b/config.yaml").write_text("query_label: 39\n")
    assert mad() == [smile[0], young[1]]
    assert mad("--query-label", "31") == smile
