"""Small result trees for the report: flat and random pictures whose every figure is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dime.core.images import difference_map
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord, summarise, write_summary

SIZE = 32
STEPS = 5


def record(id: int) -> ImageRecord:
    """Deterministic figures: ids 3, 7, … missed their target, every fifth input is misclassified."""
    pred = id % 2
    flipped = id % 4 != 3
    target = 1 - pred
    before, after = (0.9, 0.25) if pred else (0.125, 0.75)
    after = after if flipped else before
    return ImageRecord(
        id=id,
        label=pred if id % 5 != 4 else 1 - pred,
        pred=pred,
        target=target,
        cf_pred=target if flipped else pred,
        bkl=1 - after if target else after,
        l_1=((id * 7) % 10 + 1) / 100,
        orig_conf=before,
        cf_conf=after,
        scale=[8.0, 10.0, 15.0][id % 3],
    )


def picture(id: int, kind: int = 0) -> Image.Image:
    values = np.random.default_rng((id, kind)).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values)


def make_experiment(root: Path, name: str, ids: Sequence[int], with_frames: Sequence[int] = ()) -> ResultTree:
    tree = ResultTree(root, name)
    tree.create()
    for id in ids:
        made = record(id)
        x, cf = picture(id), picture(id, 1)
        x.save(tree.original(id, made.correct))
        cf.save(tree.image("CF", id, made.correct, made.flipped))
        difference = difference_map(np.asarray(x), np.asarray(cf))
        Image.fromarray(difference).save(tree.image("SM", id, made.correct, made.flipped))
        tree.info(id, made.correct, made.flipped).write_text(made.text())
    for id in with_frames:
        for kind in ("x_t", "z_t"):
            tree.frame_folder(kind, id).mkdir(parents=True)
            for step in range(STEPS):
                picture(id, 10 + step).save(tree.frame(kind, id, step))
    write_summary(tree.report("summary.yaml"), summarise([record(id) for id in ids]))
    tree.report("config.yaml").write_text("query_label: 31\n")
    return tree
