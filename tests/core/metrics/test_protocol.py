"""The evaluation protocol against the published code's figures, the images behind every number, robust flips."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as reference_inception

from dime.core.errors import InputError, UndefinedError
from dime.core.guidance import Binary
from dime.core.metrics.cd import spurious_correlations, train_labels
from dime.core.metrics.cout import class_transition
from dime.core.metrics.faces import face_features, face_verification
from dime.core.metrics.features import ImageFeatures, Machine
from dime.core.metrics.fid import FID, frechet_distance, gaussian
from dime.core.metrics.flip_rate import flip_rate
from dime.core.metrics.mad import decision_change
from dime.core.metrics.metric import Context, Measurement, select_pairs
from dime.core.metrics.mnac import changed_attributes, oracle_logits
from dime.core.metrics.protocol import evaluate, summary_figures
from dime.core.metrics.report import Report
from dime.core.metrics.robust import ROBUST, as_jpeg, as_saved, survivors
from dime.core.metrics.sigma_l import diversity
from dime.core.networks.classifiers import load_classifier
from dime.core.networks.features import load_inception, load_lpips
from dime.core.results import ResultTree
from tests.helpers import CPU, relative_error
from tests.metric_world import EXPERIMENTS, SMALL_IDS, Squares, make_tree
from tests.worlds import World

HERE = Machine(CPU, batch_size=32, num_workers=2)
SMILING = 31


def every_cf(root: Path, exp: str = "expA") -> list[Path]:
    return sorted(root.glob(f"Results/{exp}/*/*/CF/*.jpg"))


def test_faces_as_published(metric_world):
    pairs = select_pairs(metric_world.tree("expA"))
    fva, mean_cosine = face_verification(pairs, face_features(metric_world.faces, HERE))
    assert (fva.value, fva.n) == (1.0, 78)
    # 2e-5: float32 on another machine, and Pillow's decoder of JPEG
    assert mean_cosine.value == pytest.approx(0.9944956, abs=2e-5)
    assert mean_cosine.interval[0] < mean_cosine.value < mean_cosine.interval[1]


def test_attributes_as_published(metric_world):
    context = Context(HERE, oracle_path=metric_world.oracle, feature_network="oracle")
    attributes, pairs = oracle_logits(metric_world.oracle, HERE), select_pairs(metric_world.tree("expA"))
    # 0.03: one decision of 78 · 40 that lies at one half may fall either way
    assert changed_attributes(pairs, attributes)[0].value == pytest.approx(9.974358974, abs=0.03)
    [measurement] = spurious_correlations(pairs, attributes, train_labels(metric_world.celeba), SMILING)
    assert measurement.value == pytest.approx(5.808689273, abs=0.05) and measurement.notes == ()
    bottleneck = FID.needs(context, metric_world.tree("expA"))[1]
    assert bottleneck([pairs[0].original]).shape == (1, 128)


def test_decisions_as_published(metric_world):
    classifier, tree = load_classifier(metric_world.classifier, CPU), metric_world.tree("expA")
    pairs = select_pairs(tree, flipped_only=False)
    # 2e-5: float32 on another machine
    mad = decision_change(pairs, ImageFeatures(classifier, HERE), Binary(SMILING))[0].value
    assert mad == pytest.approx(0.23792914, abs=2e-5)
    for exp, flips in (("expA", 0.975), ("expB", 0.9375)):
        assert flip_rate(select_pairs(metric_world.tree(exp), flipped_only=False))[0].value == flips
    sizes = {p: len(select_pairs(metric_world.tree("expB"), p, flipped_only=False)) for p in ("cor", "inc", "all")}
    assert sizes == {"cor": 59, "inc": 21, "all": 80} and len(select_pairs(metric_world.tree("expB"), "inc")) == 20
    [result] = class_transition(select_pairs(tree, "cor", flipped_only=False), classifier, Binary(SMILING), HERE)
    # 1e-3: many pixels tie, and the published order of ties is not defined
    assert result.value == pytest.approx(-0.33994803, abs=1e-3)
    assert (result.n, result.detail.shape) == (59, (59, 52))


def test_diversity_as_published(metric_world):
    trees = [metric_world.tree(exp) for exp in EXPERIMENTS]
    result = diversity(trees, load_lpips(CPU), HERE, "all")
    # 2e-6: float32 on another machine
    assert result.value == pytest.approx(0.04578539, abs=2e-6)


def test_inception_as_pytorch_fid_has_it(metric_world, monkeypatch):
    monkeypatch.setattr(
        reference_inception, "load_state_dict_from_url", lambda *_, **__: torch.load(metric_world.inception)
    )
    reference = reference_inception.InceptionV3([3])
    pairs = select_pairs(metric_world.tree("expA"))[:9]
    folders = [[p.original for p in pairs], [p.counterfactual for p in pairs]]
    network = ImageFeatures(load_inception(metric_world.inception, CPU), HERE)
    ours = [network(paths).numpy() for paths in folders]
    theirs = [fid_score.get_activations(paths, reference, 4, 2048, "cpu", 0) for paths in folders]
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 2e-5  # float32, another order of resizing and scaling
    # in the span of the 18 vectors, where nothing is lost: the root of a 2048 x 2048 product takes a minute
    basis = np.linalg.qr(np.concatenate(theirs).T)[0]
    statistics = [((x @ basis).mean(0), np.cov(x @ basis, rowvar=False)) for x in theirs]
    try:
        expected = fid_score.calculate_frechet_distance(*statistics[0], *statistics[1])
    except TypeError:
        pytest.skip("pytorch-fid's distance asks scipy for an argument that it no longer has")
    assert frechet_distance(*(gaussian(x) for x in ours)) == pytest.approx(expected, rel=1e-3)


def realism(tree: ResultTree, features, network="oracle", partition="all") -> list[Measurement]:
    context = Context(HERE, None if partition == "all" else partition, feature_network=network)
    context.once, context.inception_weights = lambda load, *given: features, Path(__file__)
    return FID.measure(select_pairs(tree, partition), *FID.needs(context, tree))


def tiny_features(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_features_of_inputs_serve_the_next_experiment(metric_world, small):
    counts, values = [], []
    for exp in ("expA", "expA", "expB"):
        computed = []
        tree = ResultTree(small, exp)
        kept = {"file": tree.original_features("oracle"), "weights": Path(__file__)}
        network = ImageFeatures(lambda x, n=computed: n.append(len(x)) or tiny_features(x), HERE, **kept)
        values.append(realism(tree, network)[0].value)
        counts.append(sum(computed))
    assert values[0] == values[1] != values[2]
    flips = [sum(pair.flipped for pair in ResultTree(small, exp).pairs()) for exp in ("expA", "expA", "expB")]
    assert counts == [12 + flips[0], *flips[1:]]
    # it takes all inputs and only flipped counterfactuals
    tree, features = ResultTree(small, "expC"), ImageFeatures(tiny_features, HERE)
    distance, _ = realism(tree, features)
    inputs = features(tree.originals()).numpy()
    cfs = features([pair.counterfactual for pair in tree.pairs() if pair.flipped]).numpy()
    assert len(inputs) == SMALL_IDS and distance.n == len(cfs) and "oracle" in distance.name
    assert distance.value == pytest.approx(frechet_distance(gaussian(inputs), gaussian(cfs)))
    correct, _ = realism(tree, features, partition="cor")
    assert correct.n == sum(pair.correct and pair.flipped for pair in tree.pairs())


@pytest.mark.parametrize("batch_size", [1, 11, 12])
def test_batches_and_tails_of_one_change_nothing(small, batch_size):
    def classify(x: torch.Tensor) -> torch.Tensor:
        return 5 * x.mean(dim=(2, 3))

    def numbers(machine: Machine) -> list[float]:
        tree = ResultTree(small, "expA")
        pairs = select_pairs(tree, flipped_only=False)
        features = ImageFeatures(tiny_features, machine)
        return [
            face_verification(pairs, features)[1].value,
            changed_attributes(pairs, features)[0].value,
            class_transition(pairs, classify, Binary(0), machine)[0].value,
            diversity([ResultTree(small, exp) for exp in EXPERIMENTS], Squares(), machine, "all").value,
            realism(tree, features, "inception")[0].value,
        ]

    # 1e-6: sums over images in another order
    assert numbers(Machine(CPU, batch_size)) == pytest.approx(numbers(HERE), rel=1e-6)


def test_realism_counts_an_input_once_and_one_without_counterfactual_too(small):
    """Two experiments that judge an input differently leave it in both folders of Original/."""
    tree, features = ResultTree(small, "expA"), ImageFeatures(tiny_features, HERE)
    expected = [m.value for m in realism(tree, features)]
    for path in list((small / "Original" / "Correct").iterdir())[:5]:
        shutil.copy(path, small / "Original" / "Incorrect")
    inputs = tree.originals()
    assert len(inputs) == len({path.name for path in inputs}) == SMALL_IDS
    assert [m.value for m in realism(tree, features)] == pytest.approx(expected)
    lost = every_cf(small)[0]
    lost.unlink()
    seen = []
    realism(tree, lambda paths: seen.append(paths) or features(paths))
    assert seen[0] == inputs  # all of Original/, explained or not
    Image.new("RGB", (32, 32)).save(next(path for path in inputs if path.name == lost.name))
    with pytest.raises(InputError, match="32x32"):
        realism(tree, features)


def test_diversity_needs_a_common_image_and_a_summary_no_flips(small):
    trees = [ResultTree(small, exp) for exp in ("expA", "expB")]
    with pytest.raises(InputError, match="at least two"):
        diversity(trees[:1], Squares(), HERE, "all")
    for path in every_cf(small, "expB"):
        path.rename(path.with_name(f"1{path.name[1:]}"))
        original = next((small / "Original").glob(f"*/{path.name}"))
        shutil.copy(original, original.with_name(f"1{path.name[1:]}"))
    with pytest.raises(UndefinedError, match="no image lies in the same folder"):
        diversity(trees, Squares(), HERE, "all")
    for path in small.glob("Results/expA/*/CCF/CF/*.jpg"):
        path.rename(path.parents[2] / "ICF" / "CF" / path.name)
    features = ImageFeatures(tiny_features, HERE)
    assert summary_figures(ResultTree(small, "expA"), features, features) == {"FVA": 0, "MNAC": 0}


NAMES = [metric.rows[0] for metric in ROBUST]


def bright(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(1, 2, 3))[:, None]


def chequered(x: torch.Tensor) -> torch.Tensor:
    """Logits (N, 1): positive where there is a pattern of one grey level up and down that nobody sees."""
    sign = 1 - 2 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)
    return (x * sign).mean(dim=(1, 2, 3))[:, None] - 0.3 / 127.5


def test_flips_are_counted_after_what_becomes_of_them(tmp_path):
    greys = [("CC/CCF", 20, 140), ("CC/CCF", 30, 160), ("CC/CCF", 40, 200), ("CC/ICF", 40, 220)]
    pairs = select_pairs(make_tree(tmp_path, greys)[0])
    assert survivors(pairs, bright, Binary(), HERE, as_saved).tolist() == [1, 1, 1]  # what failed is not asked
    seen = []

    def darker(ids: list[int], x: torch.Tensor) -> torch.Tensor:
        seen.extend(ids)
        return x - 40 / 127.5

    assert survivors(pairs, bright, Binary(), HERE, as_saved, darker).tolist() == [0, 0, 1]
    assert sorted(seen) == [0, 1, 2]


def test_jpeg_ends_what_nobody_sees(tmp_path):
    tree = make_tree(tmp_path, [("CC/CCF", 100, 100)] * 2)[0]
    pattern = 101 - 2 * ((np.arange(8)[:, None] + np.arange(8)) % 2)
    for pair in tree.pairs():
        Image.fromarray(np.repeat(pattern[..., None], 3, axis=2).astype(np.uint8)).save(pair.counterfactual)
    pairs = tree.pairs()
    assert survivors(pairs, chequered, Binary(), HERE, as_saved).tolist() == [1, 1]
    assert survivors(pairs, chequered, Binary(), HERE, as_jpeg).tolist() == [0, 0]


@pytest.fixture(scope="module")
def explained(world: World, tmp_path_factory: pytest.TempPathFactory) -> ResultTree:
    out = tmp_path_factory.mktemp("robust")
    flags = {"image_format": "png", "num_batches": 1, "batch_size": 2, "pad_batches": True}
    world.explain(out, **flags)
    world.explain(out, **flags, method="inverted", exp_name="inverted")
    return ResultTree(out, "exp")


def measured(tree: ResultTree, **given: object) -> Report:
    context = Context(HERE, **given)
    return evaluate(context, [tree, ResultTree(tree.output_path, "inverted")], True, ROBUST)


def test_of_real_runs(explained, world):
    """The inversion gives an image back, where nothing pulls; DiME does not."""
    report = measured(explained, second_classifier_path=str(world.classifier))
    dime, inverted = (report.measurements[exp] for exp in ("exp", "inverted"))
    # float32: an image comes back to 1e-5 of 127.5 levels
    assert dime["composition"].value > 1 and inverted["composition"].value < 0.01
    for name in NAMES[1:]:  # the untrained networks may flip nothing: then that is the reason
        for m in (dime[name], inverted[name]):
            assert m.reason if m.value is None else 0 <= m.value <= 1, m


def test_what_is_lacking_is_said(explained):
    config = explained.report("config.yaml")
    content = config.read_text()
    try:
        flags = yaml.safe_load(content)
        config.write_text(yaml.safe_dump({name: value for name, value in flags.items() if name != "model_path"}))
        missing = "\n".join(measured(explained).missing["exp"])
    finally:
        config.write_text(content)
    assert "flips of a second classifier: --second-classifier-path names no classifier" in missing
    assert "composition: the run's config.yaml, which names its diffusion model, is not there" in missing
