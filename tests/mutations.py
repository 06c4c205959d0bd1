"""Breaks one thing at a time in a copy of the tree, and sees the test that guards it fail.

    nice -n 10 python -m tests.mutations [--only WORD] [--timeout SECONDS] [--output FILE]

Each entry of MUTATIONS replaces one text, which stands once in the code, and names the test that must then fail. Prints
a Markdown table, a line at a time; exit code 1 if a test passed, or failed to run at all. No test itself: pytest does
not collect it, tests/unit/test_mutations.py sees that the texts are there.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.forked import import_libraries, run_pytest

ROOT = Path(__file__).parents[1]
COPIED = ("nt_dist", "launch_scripts", "tests", "configs", "pyproject.toml")
TESTS_FAILED = 1  # pytest's exit code; others: it was interrupted, could not collect, found no test

LAYOUTS = "tests/distributed/test_layouts.py"
_LAYOUT = LAYOUTS + "::test_a_layout_trains_as_one_rank_does[{}, fp32]"
TENSOR, SPLIT, REPLICATED, DATA = (
    _LAYOUT.format(name) for name in ("tensor 2", "trail 2, split trunk", "trail 2, replicated trunk", "data 2, ZeRO 1")
)
EQUAL_REPLICAS = LAYOUTS + "::test_replicas_of_the_trunk_stay_the_same_to_the_bit[{}]"
PIPE = "tests/distributed/test_pipeline.py::test_a_pipeline_trains_as_one_rank_does[pipe 2]"
CUT = "tests/distributed/test_pipeline.py::test_a_cut_before_the_fork_of_a_split_trunk[at the fork]"
COMPARED = LAYOUTS + "::test_topologies_are_compared_where_there_are_copies[trunk over trails]"
STREAMS = "tests/unit/sparsity/test_update.py::test_a_part_updates_as_the_whole_does"
STEPS = "tests/unit/sparsity/test_update.py::test_trails_and_steps_draw_apart"
PARTS = "tests/unit/sparsity/test_storage.py::test_a_part_is_cut_from_the_whole"
LOSSES = "tests/unit/model/test_losses.py::test_losses_and_gradients_are_those_of_torch"
LOADER = "tests/unit/data/test_loader.py"


@dataclass(frozen=True)
class Mutation:
    """One thing broken.

    Attributes:
        what: What is broken, for the table.
        old: A text that stands once in nt_dist and launch_scripts.
        new: What takes its place.
        test: Node id of the test that must fail.
    """

    what: str
    old: str
    new: str
    test: str

    def file(self, root: Path) -> Path:
        """Return the file under ``root`` that has the text.

        Raises:
            LookupError: Not exactly one place has it.
        """
        files = [*(root / "nt_dist").rglob("*.py"), *(root / "launch_scripts").glob("*.sh")]
        found = {path: path.read_text(encoding="utf-8").count(self.old) for path in files}
        if sum(found.values()) != 1:
            raise LookupError(f"{self.what}: {sum(found.values())} places have\n{self.old}")
        return next(path for path, count in found.items() if count)


MUTATIONS = [
    # Streams: a word of a key is dropped, or counts what this rank holds.
    Mutation(
        "init streams without the trail",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, shard)",
        "tests/unit/sparsity/test_storage.py::test_trails_differ_in_values_and_topology",
    ),
    Mutation(
        "init streams with the trail's number on this rank",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, row, shard)",
        PARTS,
    ),
    Mutation(
        "init streams with the shard's number on this rank",
        "words = (self.spec.name, trail, shard)",
        "words = (self.spec.name, trail, shard - self.shards.start)",
        PARTS,
    ),
    Mutation(
        "drop and grow streams without the step",
        "(rules.seed, purpose, spec.name, trail, shard, step) for",
        "(rules.seed, purpose, spec.name, trail, shard) for",
        STEPS,
    ),
    Mutation(
        "drop and grow streams with the trail's number on this rank",
        "(rules.seed, purpose, spec.name, trail, shard, step) for",
        "(rules.seed, purpose, spec.name, trail - rows[0][0], shard, step) for",
        STREAMS,
    ),
    Mutation(
        "drop and grow streams with the shard's number on this rank",
        "(rules.seed, purpose, spec.name, trail, shard, step) for",
        "(rules.seed, purpose, spec.name, trail, shard - rows[0][1], step) for",
        STREAMS,
    ),
    # The split trunk.
    Mutation(
        "split trunk: its gradients are not summed over the trail axis",
        "join = self.mesh.all_reduce if self.mesh.splits_trunk else self.mesh.broadcast",
        "join = self.mesh.broadcast",
        SPLIT,
    ),
    Mutation(
        "split trunk: its regrowth gradients are not summed over the trail axis",
        'self.mesh.all_reduce(gradient, ("trail",))',
        "pass",
        SPLIT,
    ),
    Mutation(
        "fork of a split trunk: gradients of the trails not summed (no reduce-scatter)",
        "dist.reduce_scatter_tensor(share, gradient.contiguous(), group=axis.group)",
        "share.copy_(gradient[axis.rank * len(share) : (axis.rank + 1) * len(share)])",
        SPLIT,
    ),
    Mutation(
        "fork of a split trunk: shares not gathered",
        "dist.all_gather_into_tensor(whole, x.contiguous(), group=axis.group)",
        "whole.copy_(x.repeat(axis.degree, 1, 1))",
        SPLIT,
    ),
    Mutation(
        "split trunk: all ranks take the first share",
        "return tokens[share.start : share.stop]",
        "return tokens[: len(share)]",
        SPLIT,
    ),
    Mutation(
        "pipeline: before the fork, a stage of an evaluation expects whole micro-batches",
        "(1, self.place.into_trunk(tokens)) if",
        "(1, tokens) if",
        CUT,
    ),
    # The replicated trunk.
    Mutation(
        "fork of a replicated trunk: gradients of the trails not summed",
        "return _copied_to(x, self.mesh.trail)",
        "return x",
        REPLICATED,
    ),
    Mutation(
        "trunk: replicas that computed other gradients keep them",
        "weight.values.register_hook(joined)",
        "pass",
        EQUAL_REPLICAS.format("replicated"),
    ),
    Mutation(
        "regrowth: replicas that computed other dense gradients keep them",
        "self.mesh.broadcast(gradient, self.place.replica_axes(weight))",
        "pass",
        EQUAL_REPLICAS.format("replicated"),
    ),
    # Tensor parallelism.
    Mutation(
        "column-parallel: gradient of the input not summed over the tensor axis",
        "return _copied_to(x, self.mesh.tensor)",
        "return x",
        TENSOR,
    ),
    Mutation(
        "row-parallel: partial results not summed over the tensor axis",
        "return _mappings().reduce_from_tensor_model_parallel_region(x.contiguous(), self.mesh.tensor.group)",
        "return x",
        TENSOR,
    ),
    Mutation(
        "cut cross-entropy: highest logit of this rank alone",
        "highest = maximum(rows.amax(-1).float())",
        "highest = rows.amax(-1).float()",
        TENSOR,
    ),
    Mutation(
        "cut cross-entropy: exponentials and target's logit not summed",
        "normalizer, target = total(sums)",
        "normalizer, target = sums",
        TENSOR,
    ),
    Mutation(
        "evaluation: likeliest piece of this rank's pieces",
        "highest = self.max_of_pieces(value.clone())",
        "highest = value",
        TENSOR,
    ),
    Mutation(
        "evaluation: ranks of the tensor axis do not agree on the likeliest piece",
        'return highest, self.mesh.all_reduce(piece, ("tensor",), op="min")',
        "return highest, piece",
        TENSOR,
    ),
    # Figures of all trails.
    Mutation(
        "losses of the trails held here alone",
        "return _gathered(figures, 0, self.mesh.trail)",
        "return figures",
        REPLICATED,
    ),
    Mutation(
        "evaluation: mean of the logits of the trails held here alone",
        'return self.mesh.all_reduce(logits.mean(0), ("trail",)).div_(self.mesh.trail.degree)',
        "return logits.mean(0)",
        REPLICATED,
    ),
    # The pipeline.
    Mutation(
        "pipeline: losses stay on the last stage",
        '), ("pipe", "data"))',
        '), ("data",))',
        PIPE,
    ),
    Mutation(
        "pipeline: figures of an evaluation stay on the last stage",
        'mesh.all_reduce(tensor, ("pipe", "data"))',
        'mesh.all_reduce(tensor, ("data",))',
        PIPE,
    ),
    # Data parallelism.
    Mutation(
        "losses of this data rank alone",
        '), ("pipe", "data"))',
        '), ("pipe",))',
        DATA,
    ),
    Mutation(
        "mean over this data rank's tokens alone",
        'torch.stack([batch.weights.sum() for batch in micro_batches]).sum(), ("data",))',
        "torch.stack([batch.weights.sum() for batch in micro_batches]).sum(), ())",
        DATA,
    ),
    Mutation(
        "regrowth: dense gradients not summed over the data axis",
        'self.mesh.all_reduce(gradient, ("data",)).mul_(scale)',
        "gradient.mul_(scale)",
        DATA,
    ),
    Mutation(
        "ZeRO 1: masters and moments of this rank's partition alone",
        "comm.all_reduce(whole.view(torch.int32), group=self.engine.data_parallel_group)",
        "pass",
        DATA,
    ),
    Mutation(
        "evaluation: all data ranks read the first rank's samples",
        "first = (number * self.data_degree + self.data_rank) * self.micro_batch_size",
        "first = number * self.data_degree * self.micro_batch_size",
        LOADER + "::test_evaluation_covers_each_sample_once_on_equal_shapes",
    ),
    # The norm's rule: each weight counts once.
    Mutation(
        "norm: every copy of a replicated weight counts",
        "return all(getattr(self.mesh, axis).rank == 0 for axis in self.replica_axes(weight))",
        "return True",
        REPLICATED,
    ),
    Mutation(
        "norm: weights that are cut over the tensor axis count on its first rank alone",
        "over_shards = self.mesh.tensor.degree > 1 and weight.spec.shards == 1",
        "over_shards = self.mesh.tensor.degree > 1",
        TENSOR,
    ),
    Mutation(
        "norm: of this rank's part alone",
        "return self.mesh.all_reduce(squares, MODEL_AXES)[0].sqrt().float()",
        "return squares[0].sqrt().float()",
        TENSOR,
    ),
    # Topologies.
    Mutation(
        "topologies of replicas are not compared over the trail axis",
        'parts = self.mesh.all_reduce(flat, ("data", *axes), op)',
        'parts = self.mesh.all_reduce(flat, ("data",), op)',
        COMPARED,
    ),
    # Losses, norms, rotation: derivatives written by hand.
    Mutation(
        "losses: the gradient lacks the target",
        "softmax.scatter_add_(1, index[some], less[some])",
        "softmax",
        LOSSES,
    ),
    Mutation(
        "norm: the gradient of x lacks the projection",
        "normalized *= (product @ to_mean) * inverse",
        "normalized *= 0",
        "tests/unit/model/test_functions.py::test_norms_in_lots_are_torchs",
    ),
    Mutation(
        "rotation: its gradient is turned the same way",
        "return _rotated(gradient, cosines, -sines), None, None",
        "return _rotated(gradient, cosines, sines), None, None",
        "tests/unit/model/test_functions.py::test_rotation_is_that_of_complex_numbers",
    ),
    # Waiting, saving, shells.
    Mutation(
        "ranks wait for long work in a collective",
        "while not mesh.is_main and not store.check([name]):",
        "while False:",
        "tests/distributed/test_agree.py::test_ranks_that_wait_for_the_main_ranks_work_look_about_meanwhile",
    ),
    Mutation(
        "a run goes back without the save that was under way",
        "self.saver.settle()  # what was copied before this step is good, whatever follows",
        "pass",
        "tests/unit/training/test_loop.py::test_a_run_goes_back_to_the_save_that_was_under_way",
    ),
    Mutation(
        "shells of other hosts are handed what they would act on",
        '[[ "$argument" != *[',
        'true || [[ "$argument" != *[',
        "tests/unit/test_launch_scripts.py::test_nothing_that_a_shell_would_act_on_is_handed_to_other_hosts",
    ),
]


@dataclass(frozen=True)
class Outcome:
    """What a test did on a broken tree: whether it failed as it should, why, and how long it took."""

    failed: bool
    reason: str
    seconds: float


def run(mutation: Mutation, tree: Path, timeout: float) -> Outcome:
    """Break ``tree``, run the test in it, mend it again."""
    file, log, began = mutation.file(tree), tree / "log", time.monotonic()
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    log.unlink(missing_ok=True)
    arguments = ["-q", "-x", "-rf", "--tb=line", "-p", "no:cacheprovider", mutation.test]
    code = run_pytest(arguments, tree, log, timeout)
    file.write_text(whole, encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    found = re.search(r"^FAILED .*? - (.*)$", output, re.MULTILINE)
    reason = f"no end within {timeout:g} s" if code is None else found[1] if found else output.splitlines()[-1]
    return Outcome(code == TESTS_FAILED, reason, time.monotonic() - began)


def main() -> int:
    """Run all mutations, or some; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose description or test has this word")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one test (default 600)")
    parser.add_argument("--output", type=Path, help="file that the table is also written to")
    arguments = parser.parse_args()
    import_libraries()
    lines = ["| what is broken | test | failed as it should | with | s |", "|---|---|---|---|---|"]
    right = True
    with tempfile.TemporaryDirectory(prefix="nt_dist_mutations_") as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (tree / name).parent.mkdir(exist_ok=True)
            copy(ROOT / name, tree / name)
        for compiled in list(tree.rglob("__pycache__")):
            shutil.rmtree(compiled)
        print("\n".join(lines), flush=True)
        for mutation in MUTATIONS:
            if arguments.only not in f"{mutation.what} {mutation.test}":
                continue
            outcome = run(mutation, tree, arguments.timeout)
            right &= outcome.failed
            reason = outcome.reason.replace("|", "\\|")[:80]
            test = mutation.test.rpartition("/")[2]
            lines.append(
                f"| {mutation.what} | `{test}` | {'yes' if outcome.failed else '**no**'} | {reason} | "
                f"{outcome.seconds:.0f} |"
            )
            print(lines[-1], flush=True)
            if arguments.output:
                arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
