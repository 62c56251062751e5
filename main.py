"""DiME: counterfactual explanations of a classifier's decisions.

Every image is noised half-way and denoised again while the classifier pulls it over its decision and two distances
hold it at the input; the smallest realistic change that flips the decision remains. Run it again with --merge_and_eval
True to join the summaries of chunks.
"""

from dataclasses import replace
from pathlib import Path

from dime.core.arithmetic import keep_freed_memory
from dime.core.cli import EXIT_SOME_FAILED, run, say, stoppable
from dime.core.config import Config, parse_config
from dime.core.job.identity import merge_chunks
from dime.core.job.run import Run
from dime.core.job.setup import set_up
from dime.core.job.world import World
from dime.core.results import ResultTree
from dime.core.summary import Summary, write_summary


def main() -> int:
    """Run one chunk, alone or with other processes, or merge the summaries of all chunks."""
    world = World()
    with world.one_voice():
        config = world.parsed(lambda: parse_config(__doc__.splitlines()[0]))
        # --overwrite, given again, would start afresh
        with stoppable("run the same command again" + (", without --overwrite," if config.overwrite else "")):
            if (code := world.several(config.gpu)) is not None:
                return code
            failed = 0
            for each in experiments(config):
                tree = ResultTree(Path(each.output_path), each.exp_name, each.image_format)
                if summary := summary_of(each, tree, world):
                    report(summary, tree)
                    failed += summary.get("failed", 0)
    return EXIT_SOME_FAILED if failed else 0


def experiments(config: Config) -> list[Config]:
    """One for each of several target classes."""
    targets = config.target.split(",")
    if len(targets) == 1 or Path(config.target).is_file():
        return [config]
    return [replace(config, target=target, exp_name=f"{config.exp_name}/{target}") for target in targets]


def summary_of(config: Config, tree: ResultTree, world: World) -> Summary | None:
    """Explain the images of one chunk, from where an earlier run of the same command has left it, or merge all chunks.

    Everything that can be checked is checked before anything is written. Of several processes one has a summary.
    """
    run, merging = None, config.merge_and_eval
    if merging and not world.speaks:
        return None
    figures = config.oracle_figures and (merging or config.num_chunks == 1)
    device = world.device(config.gpu) if figures or not merging else None
    if not merging:
        if (config.save_x_t or config.save_z_t) and not config.save_images:
            say("--save_images False: no image is written, and no frame of --save_x_t and --save_z_t.")
        keep_freed_memory()
        run = Run(set_up(config, device), tree, world)
    if figures:
        from dime.core.metrics.faces import face_features
        from dime.core.metrics.features import Machine
        from dime.core.metrics.mnac import oracle_logits
        from dime.core.metrics.protocol import summary_figures

        machine = Machine(device, config.batch_size)
        faces, attributes = face_features(config.face_path, machine), oracle_logits(config.oracle_path, machine)
    summary = run() if run else merge_chunks(tree, config.num_chunks, config.allow_partial)
    if summary and figures:
        summary = {**summary, **summary_figures(tree, faces, attributes)}
        write_summary(tree.report("summary.yaml"), summary)
    return summary


def report(summary: Summary, tree: ResultTree) -> None:
    """The last lines: how many images, how accurate, how many flipped, and where everything lies."""
    failed = f", {summary['failed']} failed (see failed.yaml)" if summary.get("failed") else ""
    truth = f"classifier accuracy {summary['clean acc']:.1f} %"
    if summary.get("unlabelled"):
        truth = "no labels: predictions stand for them"
    print(
        f"{summary['n']} images: {truth}, "
        f"flip rate {100 * summary['cf acc']:.1f} %, mean change {summary['l_1']:.4f}{failed}"
    )
    print(f"Results: {tree.results}")


if __name__ == "__main__":
    run(main)
