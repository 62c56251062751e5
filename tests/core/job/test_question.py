"""What is asked: outputs, classes, labels and targets by name or number, and what does not fit together."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dime.core.config import Config
from dime.core.datasets import Source, open_dataset
from dime.core.errors import InputError
from dime.core.guidance import Binary, MultiClass
from dime.core.job.setup import Question, ask, index_of

PLACES = ("cat/a b.png", "cat/b.png", "dog/x,y.png", "owl/1.png", "owl/deep/2.png")
CLASSES = Config(dataset="folder", decision="multiclass")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("animals")
    for number, place in enumerate(PLACES):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / place)
    return open_dataset("folder", str(folder), 8)


def network(outputs: int, names: list[str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(num_outputs=outputs, names=names)


def refusal(config: Config, source: Source, classifier: SimpleNamespace) -> str:
    with pytest.raises(InputError) as error:
        ask(config, source, classifier)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folders_classes_stand_for_outputs_without_names(source):
    question = ask(CLASSES, source, network(3))
    assert isinstance(question.decision, MultiClass) and question.target is None
    assert list(question.classes) == ["cat", "dog", "owl"] and question.labels.tolist() == [0, 0, 1, 2, 2]
    own = ask(CLASSES, source, network(4, ["owl", "fish", "dog", "cat"]))
    assert own.labels.tolist() == [3, 3, 2, 0, 0]
    line = refusal(CLASSES, source, network(3, ["cats", "dogs", "owl"]))
    assert "'cat'" in line and "cats" in line and "--class_names" in line
    assert "one output" in refusal(CLASSES, source, network(1))


def test_names_from_a_file(source, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("owl\ncat\ndog\n")
    config = replace(CLASSES, class_names=str(path), target="cat")
    question = ask(config, source, network(3))
    assert question.labels.tolist() == [1, 1, 2, 0, 0] and question.fixed_target == 1
    path.write_text("owl\ncat\n")
    assert "2 names" in refusal(config, source, network(3)) and "3 outputs" in refusal(config, source, network(3))
    path.write_text("owl\ncat\ncat\n")
    assert "'cat' is there twice" in refusal(config, source, network(3))
    assert "nowhere.txt" in refusal(replace(config, class_names="nowhere.txt"), source, network(3))


def test_one_target_for_all_leaves_out_what_carries_it(source):
    for target in ("owl", "2"):
        question = ask(replace(CLASSES, target=target), source, network(3))
        assert question.fixed_target == 2 and question.target(0) == 2
        assert question.select(5, -1, 10) == [0, 1, 2]
    assert "is owl meant?" in refusal(replace(CLASSES, target="owls"), source, network(3))
    assert "give 0 to 2" in refusal(replace(CLASSES, target="3"), source, network(3))
    # a name that looks like a number is a name
    assert index_of("1", ["1", "0"], "--target") == 0 and index_of(0, ["b", "a"], "--target") == 0
    question = Question(MultiClass(), -1, ["a", "b"], np.array([1, 1]), lambda id: 1, 1)
    with pytest.raises(InputError, match="no image is left to explain"):
        question.select(2, -1, 10)


def test_targets_from_a_file_by_name_or_id(source, tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text('file,class\ncat/a b.png,dog\n1,owl\n"dog/x,y.png",cat\n3,0\n4,1\n')
    question = ask(replace(CLASSES, target=str(path)), source, network(3))
    assert [question.target(id) for id in range(5)] == [1, 2, 0, 0, 1] and question.fixed_target is None
    assert question.select(5, -1, 10) == [0, 1, 2, 3, 4]
    path.write_text("0,dog\n")
    question = ask(replace(CLASSES, target=str(path)), source, network(3))
    with pytest.raises(InputError, match=r"no class for image 1 \(cat/b\.png\)"):
        question.target(1)
    for content, said in (("0,dog\n1,wolf\n", "line 2 wolf"), ("0,dog,1\n", "line 1 has 3 columns")):
        path.write_text(content)
        assert said in refusal(replace(CLASSES, target=str(path)), source, network(3))


def test_one_output_of_many_by_the_folders_class_and_what_is_chosen(source):
    config = Config(dataset="folder", query_label="dog")
    question = ask(config, source, network(3, ["cat", "dog", "owl"]))
    assert question.decision == Binary(1) and question.labels.tolist() == [0, 0, 1, 0, 0] and not question.classes
    assert "--class_names" in refusal(replace(config, query_label=1), source, network(3))
    assert "--query_label is missing" in refusal(replace(config, query_label=-1), source, network(3))
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    question = Question(Binary(31), 31, labels=labels)
    assert question.select(7, -1, 3) == [0, 1, 2]
    assert question.select(7, 0, 3) == [0, 3, 5] and question.select(7, 1, 99) == [1, 2, 4]


def test_a_single_logit_needs_no_query(tmp_path):
    for place in ("no/1.png", "yes/2.png"):
        (tmp_path / place).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / place)
    two = open_dataset("folder", str(tmp_path), 8)
    question = ask(Config(dataset="folder", use_logits=True), two, network(1))
    assert question.decision == Binary(0, use_logits=True) and question.labels.tolist() == [0, 1]


def test_without_labels_nothing_is_known(tmp_path):
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    bare = open_dataset("folder", str(tmp_path), 8)
    assert ask(CLASSES, bare, network(3)).labels is None
    question = ask(Config(dataset="folder"), bare, network(1))
    assert question.labels is None and question.select(2, -1, 10) == [0, 1]
    with pytest.raises(InputError, match="--target_label 1: needs labels"):
        question.select(2, 1, 10)


def test_attributes_keep_their_published_numbers(world):
    celeba = open_dataset("CelebA", str(world.data), 8)
    for query in (31, "Smiling"):
        question = ask(Config(query_label=query), celeba, network(40))
        assert (question.query, question.decision) == (31, Binary(31))
    named = network(2, ["Young", "Smiling"])
    assert ask(Config(query_label="Smiling"), celeba, named).decision == Binary(1)
    assert "decides on Young, Smiling only" in refusal(Config(query_label="Male"), celeba, named)
    assert "is Smiling meant?" in refusal(Config(query_label="Smilling"), celeba, network(40))
