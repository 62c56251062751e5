"""benchmark-truth.py: known counterfactuals on drawn faces, shortcuts, cost, and what a user may get wrong."""

import functools
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dime.core.datasets import ATTRIBUTES, image_transform, open_dataset
from dime.core.drawn_faces import DRAWN, counterfactual, draw
from dime.core.drawn_faces.folder import Plan, write_folder
from dime.core.errors import InputError
from dime.core.images import input_to_uint8, to_hwc
from dime.core.job.writer import write_image
from dime.core.metrics.features import Machine
from dime.core.metrics.report import Report
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord
from dime.core.training.classifier import to_file
from dime.core.truth import rows
from dime.core.truth.benchmark import INPUT, TRUTH, Experiment, benchmark, left_out, measure
from dime.core.truth.cases import Cases
from dime.core.truth.faces import DrawnFaces, Shortcut, Task
from dime.core.truth.rows import EVALUATIONS
from dime.models.classifiers import SmallCNN
from guided_diffusion.script_util import diffusion_defaults
from tests.helpers import CPU
from tests.worlds import Run, refusal, run_script, succeeded

SIZE, IMAGES, QUERY = 32, 6, "Smiling"
PLAN = Plan(5, num_val=IMAGES)
HERE = Machine(CPU, batch_size=4, num_workers=1)
SMILING, EYEGLASSES = DRAWN.index("Smiling"), DRAWN.index("Eyeglasses")


def unchanged(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return x


def make_network(path: Path, names: Sequence[str] = DRAWN) -> Path:
    torch.save(to_file(SmallCNN(len(names), widths=(4, 4, 4, 4)), names), path)
    return path


@functools.cache
def true_picture(id: int) -> np.ndarray:
    """The true counterfactual of a face as a run would write it, (SIZE, SIZE, 3)."""
    file = io.BytesIO()
    draw(counterfactual(PLAN.face(id), QUERY)).save(file, "JPEG", quality=95)
    return to_hwc(input_to_uint8(image_transform(SIZE)(Image.open(file))))


def explain_faces(
    output_path: Path,
    name: str,
    data: Path,
    explain: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda x, truth: truth,
    image_format: str = "png",
    correct: Callable[[int], bool] = lambda id: True,
    flipped: Callable[[int], bool] = lambda id: True,
    **config: object,
) -> ResultTree:
    """A result tree as main.py leaves it, with counterfactuals explain(input, true one), all (H, W, 3), 8-bit."""
    tree = ResultTree(output_path, name, image_format)
    tree.create()
    dataset = open_dataset("CelebA", str(data), SIZE)
    for id in range(IMAGES):
        x = to_hwc(input_to_uint8(dataset.load(id)))
        write_image(tree.original(id, correct(id)), x)
        write_image(tree.image("CF", id, correct(id), flipped(id)), explain(x, true_picture(id)))
    flags = {"query_label": ATTRIBUTES.index(QUERY), "image_size": SIZE, "dataset": "CelebA", "data_dir": str(data)}
    tree.report("config.yaml").write_text(yaml.safe_dump(flags | {"use_train": False} | config))
    return tree


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    write_folder(folder := tmp_path_factory.mktemp("faces") / "data", PLAN)
    return folder


@pytest.fixture(scope="module")
def faces(data) -> DrawnFaces:
    """The faces of the data set; what one test draws, the next one finds."""
    return DrawnFaces(Task(ATTRIBUTES.index(QUERY), SIZE, "CelebA", False, str(data)))


def measured(faces: DrawnFaces, *trees: ResultTree) -> tuple[Report, dict[str, dict[str, float]]]:
    """The benchmark and its values; to the byte, the oracle knows inputs and true counterfactuals, and nothing else."""
    labels = {}
    for id in range(IMAGES):
        labels[faces.picture(id).tobytes()] = faces.has(id)
        turned = counterfactual(faces.face(id), QUERY).has
        labels[faces.picture(id, QUERY).tobytes()] = np.array([name in turned for name in DRAWN])

    def oracle(pictures: np.ndarray) -> np.ndarray:
        return np.array([labels.get(picture.tobytes(), np.zeros(len(DRAWN), bool)) for picture in pictures]).astype(int)

    report = benchmark([Experiment(tree.exp_name, [tree]) for tree in trees], faces, oracle, HERE)
    return report, {name: {key: m.value for key, m in found.items()} for name, found in report.measurements.items()}


def test_the_truth_and_unchanged_as_counterfactuals(faces, data, tmp_path):
    """An experiment that found the truth has the figures of the truth, one that did nothing those of its inputs."""
    found_it = explain_faces(tmp_path, "truth", data)
    nothing = explain_faces(tmp_path, "nothing", data, unchanged, flipped=lambda id: False)
    _, values = measured(faces, found_it, nothing)
    assert {key: value for key, value in values["truth"].items() if key != rows.FLIP_RATE} == values[TRUTH]
    assert {key: value for key, value in values["nothing"].items() if key != rows.FLIP_RATE} == values[INPUT]
    expected = {rows.FLIP_RATE: 1, rows.TURNED: 1, rows.OTHERS: 0, rows.DISTANCE: 0, rows.RECOVERED: 1}
    assert {key: values["truth"][key] for key in expected} == expected
    assert values["truth"][rows.RECOVERED_INSIDE] == 1 and values["truth"][rows.ALIGNMENT] == pytest.approx(1)
    # the folder's JPEG files differ by a level beyond the region, of tens within it
    assert values["truth"][rows.OUTSIDE] < 0.2 < 3 < values["truth"][rows.INSIDE]
    assert values["truth"][rows.SHARE_OUTSIDE] < 0.1
    assert values["truth"][rows.LOCALISATION] > 0.85  # some shading of the region is lost between 8-bit levels
    expected = {rows.FLIP_RATE: 0, rows.TURNED: 0, rows.OTHERS: 0, rows.INSIDE: 0, rows.RECOVERED: 0}
    assert {key: values["nothing"][key] for key in expected} == expected
    assert rows.SHARE_OUTSIDE not in values["nothing"] and rows.ALIGNMENT not in values["nothing"]
    # what a perfect JPEG file shows beyond the region is the format's, and the column of the truth shows it too
    _, values = measured(faces, explain_faces(tmp_path, "exp", data, image_format="jpg"))
    assert values["exp"][rows.DISTANCE] == 0 and values["exp"][rows.RECOVERED] == 1
    assert values["exp"][rows.OUTSIDE] == values[TRUTH][rows.OUTSIDE] > 0.3
    # a hair colour given takes another away: neither is counted as another attribute
    grey = DrawnFaces(Task(ATTRIBUTES.index("Gray_Hair"), SIZE, "CelebA", False, str(data)))
    changed = [[DRAWN[a] for a in np.flatnonzero(grey.case(pair).expected)] for pair in nothing.pairs()]
    assert all("Gray_Hair" in names for names in changed) and max(map(len, changed)) == 2


def test_images_without_a_true_counterfactual_are_left_out(faces, data, tmp_path):
    tree = explain_faces(tmp_path, "exp", data, correct=lambda id: id != 2)
    report, _ = measured(faces, tree)
    assert report.measurements["exp"][rows.RECOVERED].n == IMAGES - 1
    assert report.measurements["exp"][rows.FLIP_RATE].n == IMAGES
    assert report.caveats["exp"] == ["exp: 1 images that its classifier misjudges have no true counterfactual"]
    labels = [QUERY in faces.face(id).has for id in range(IMAGES)]
    cases = Cases([faces.case(pair) for pair in tree.pairs()], lambda pictures: None, DRAWN.index(QUERY))
    assert cases.target.tolist() == [label if id == 2 else not label for id, label in enumerate(labels)]
    figures = measure(tree.pairs(), [], faces, lambda pictures: None, HERE)
    hidden = replace(figures, masks=figures.masks | {"true": figures.masks["correct"] & (np.arange(IMAGES) < 4)})
    assert left_out("exp", hidden, "Bangs")[1].startswith("exp: in 2 images Bangs does not show")
    nothing = np.zeros(IMAGES, bool)
    with pytest.raises(InputError, match="none of its 6 images has a true counterfactual"):
        left_out("exp", replace(figures, masks=figures.masks | {"true": nothing, "correct": nothing}), QUERY)


def test_seeds_are_one_column_and_an_image_is_resampled_with_all_of_them(faces, data, tmp_path):
    """Half of the counterfactuals are the truth. Where it is a seed's, every image has one: there is no doubt left."""
    right = explain_faces(tmp_path, "right", data)
    wrong = explain_faces(tmp_path, "wrong", data, unchanged, flipped=lambda id: False)
    mixed = explain_faces(tmp_path, "mixed", data, flipped=lambda id: id % 2 == 0)
    experiments = [Experiment("seeds", [right, wrong]), Experiment("images", [mixed, mixed])]
    report = benchmark(experiments, faces, lambda pictures: np.zeros((len(pictures), len(DRAWN)), int), HERE)
    seeds, images = (report.measurements[name][rows.FLIP_RATE] for name in ("seeds", "images"))
    assert (seeds.value, seeds.n, seeds.interval) == (0.5, IMAGES, (0.5, 0.5))
    assert (images.value, images.n) == (0.5, IMAGES) and images.interval[1] - images.interval[0] > 0.5


SHORTCUT = Shortcut("Smiling", "Eyeglasses")
CD, CORRELATION, ALONG, BY_SMILE, BY_GLASSES, RELIANCE = SHORTCUT.row_names


def told(inputs: list[tuple[int, int]], cfs: list[tuple[int, int]]) -> dict[str, float]:
    """What explanations tell by which the oracle sees these (Smiling, Eyeglasses), before and after."""
    seen, cf_seen = np.zeros((2, len(inputs), len(DRAWN)), int)
    seen[:, [SMILING, EYEGLASSES]], cf_seen[:, [SMILING, EYEGLASSES]] = inputs, cfs
    cases = SimpleNamespace(seen=seen, cf_seen=cf_seen, target=1 - seen[:, SMILING])
    labels = np.zeros((4, len(DRAWN)), int)  # of a data set in which smiles and glasses are independent
    labels[:, [SMILING, EYEGLASSES]] = [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = {}
    for row in SHORTCUT.told(SimpleNamespace(names=DRAWN, labels=lambda: labels), np.ones(len(DRAWN), bool)):
        assert row.among == "flipped"
        values = row.per_image(cases).astype(float)
        found[row.name] = row.combine(values[np.isfinite(values.reshape(len(values), -1)).all(axis=1)])
    return found


def test_glasses_that_come_and_go_with_the_smile_are_seen():
    inputs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    with_glasses = told(inputs, [(1, 1), (1, 1), (0, 0), (0, 0)])
    # changes (1, 1), (1, 0), (-1, 0), (-1, -1): their correlation is 2 / sqrt(4 * 2)
    assert with_glasses[CORRELATION] == pytest.approx(2**-0.5)
    assert with_glasses["CD"] == pytest.approx(2**-0.5)  # the data set has none, no other attribute moves
    assert with_glasses[ALONG] == 1  # in both images where they could
    alone = told(inputs, [(1, 0), (1, 1), (0, 0), (0, 1)])
    assert alone == {"CD": 0, CORRELATION: 0, ALONG: 0}
    against = told(inputs, [(1, 0), (1, 0), (0, 1), (0, 1)])
    assert against[CORRELATION] == pytest.approx(-(2**-0.5)) and against[ALONG] == 0


def test_what_a_classifier_truly_relies_on(faces, data, tmp_path, monkeypatch):
    """A classifier whose logit is 4 smiling + 1 eyeglasses - 2: a fifth of it is glasses, and they never decide."""
    tree = explain_faces(tmp_path, "exp", data, flipped=lambda id: False)
    assert Task.of(tree) == Task(ATTRIBUTES.index(QUERY), SIZE, "CelebA", False, str(data))
    logit = {}
    for id in range(IMAGES):
        for name in ("", "Smiling", "Eyeglasses"):
            face = counterfactual(faces.face(id), name) if name else faces.face(id)
            logit[faces.picture(id, name).tobytes()] = 4.0 * ("Smiling" in face.has) + ("Eyeglasses" in face.has) - 2

    def classify(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0, logit[picture.tobytes()]] for picture in to_hwc(input_to_uint8(x))])

    classify.names, classify.num_outputs = ["Young", QUERY], 2
    monkeypatch.setattr("dime.core.metrics.metric.load_classifier", lambda *_, **__: classify)
    experiment = Experiment("exp", [tree])
    experiment.add("shortcut", lambda _: SHORTCUT.told(faces, np.ones(len(DRAWN), bool)))
    experiment.add("classifier", lambda e: SHORTCUT.true([tree], e.ids, faces, HERE))
    nothing = np.zeros((HERE.batch_size, len(DRAWN)), int)
    report = benchmark([experiment], faces, lambda pictures: nothing[: len(pictures)], HERE)
    found = report.measurements["exp"]
    assert found[RELIANCE].value == pytest.approx(0.2)
    assert found[BY_SMILE].value == 1 and found[BY_GLASSES].value == 0
    assert CD not in found and CORRELATION not in found, "no counterfactual that reached its target, none to explain"
    assert report.missing["exp"][0].endswith("no counterfactual of exp reached its target")
    assert all(found[name].n == IMAGES for name in (RELIANCE, BY_SMILE, BY_GLASSES))


def benchmark_truth(*arguments: object) -> Run:
    return run_script("benchmark-truth", *arguments, "--gpu", "cpu", "--num-workers", 1)


def test_the_command_leaves_a_table_and_a_figure(data, tmp_path):
    classifier = make_network(tmp_path / "classifier.pth", ["Smiling"])
    method = {**diffusion_defaults(), "method": "fastdime2", "start_step": 7, "classifier_scales": [2.0, 0.1]}
    right = explain_faces(tmp_path, "right", data, classifier_path=str(classifier), **method)
    for pair in right.pairs():
        scale = float(np.float32(0.1 if pair.id == 0 else 2))
        pair.info.write_text(ImageRecord(pair.id, 0, 0, 1, 1, 0.1, 0.1, 0.1, 0.9, scale).text())
    explain_faces(tmp_path, "lost", data, unchanged, classifier_path=str(tmp_path / "gone.pth"))
    oracle = make_network(tmp_path / "oracle.pth")
    arguments = ("--output-path", tmp_path, "--exp-name", "right", "lost", "--oracle-path", oracle)
    result = succeeded(benchmark_truth(*arguments, "--shortcut", "Eyeglasses", "--json", tmp_path / "truth.json"))
    assert (tmp_path / "truth.md").read_text() in result.out
    assert "| recovered " in result.out and "(true cf)" in result.out and RELIANCE in result.out
    assert "classifier of lost" in result.out and "gone.pth: no such file" in result.out
    content = json.loads((tmp_path / "truth.json").read_text())["measurements"]
    assert content["right"]["recovered"] == {"name": "recovered", "value": 1.0, "n": IMAGES, "interval": [1.0, 1.0]}
    # two passes of seven steps; one image took two scales
    assert content["right"][EVALUATIONS]["value"] == pytest.approx(14 * (IMAGES + 1) / IMAGES)
    assert "evaluations of lost" in result.out
    assert Image.open(tmp_path / "truth.png").width > 500


def test_faces_and_trees_that_do_not_fit(data, tmp_path):
    few, other, absent = tmp_path / "few", tmp_path / "other", tmp_path / "absent"
    oracle, narrow = make_network(tmp_path / "oracle.pth"), make_network(tmp_path / "narrow.pth", ["Young"])

    def refused(*arguments: object) -> str:
        flags = ("--output-path", tmp_path, "--exp-name", "exp", "--oracle-path", oracle)
        line = refusal(benchmark_truth(*flags, *arguments))
        assert not (tmp_path / "truth.md").exists()
        return line

    tree = explain_faces(tmp_path, "exp", data)
    write_folder(other, Plan(6, num_val=IMAGES))
    line = refused("--celeba-path", other)
    assert "0000000.png: is not 000001.jpg of" in line and "--celeba-path" in line
    shutil.copytree(data, few)
    rows = (few / "list_eval_partition.csv").read_text().splitlines()
    (few / "list_eval_partition.csv").write_text("\n".join(rows[:4]) + "\n")
    assert "has 3 images to explain, but the experiment holds number 3" in refused("--celeba-path", few)
    (few / "faces.jsonl").unlink()
    assert "faces.jsonl: not found; only a folder written by make-drawn-faces.py" in refused("--celeba-path", few)

    for name, query in (("young", 39), ("undrawn", 2), ("odd", "Smiling")):
        explain_faces(tmp_path, name, data, query_label=query)
    for arguments, said in (
        (["--celeba-path", absent], "no such folder"),
        (["--exp-name", "exp", "young"], "Young at 32 pixels"),
        (["--exp-name", "undrawn"], "'Attractive' is not drawn"),
        (["--exp-name", "absent"], "no experiment lies there"),
        (["--exp-name", "odd"], "no readable config.yaml with query_label"),
        (["--shortcut", "Smiling"], "is the attribute explained"),
        (["--shortcut", "Blurry"], "'Blurry' is not drawn"),
        (["--oracle-path", narrow], "narrow.pth: does not decide on Smiling"),
    ):
        assert said in refused(*arguments)
    tree.report("config.yaml").unlink()
    assert "no readable config.yaml" in refused()
