"""Starts a run from another program's checkpoint, or from an exported ensemble; train.py with the config continues it.

    python tools/import_hf.py --model folder --config run.toml [--noise 0.1] [section.key=value …]

--model is a folder with config.json and *.safetensors of a dense LLaMA or ResNet in transformers' layout
(LlamaForCausalLM, ResNetForImageClassification): the trunk is taken from its first blocks, every trail from its last
ones, and each matrix is pruned by magnitude to the config's density. With --noise the trails' matrices differ from the
start, by so many of their own standard deviations. Or it is a checkpoint of the NeuroTrails paper's language code
(backbone_model.…, head_model_<number>.…; *.safetensors or pytorch_model.bin): its trails stay what they are, and
trails.final_norm_twice must be true. Or it is an ensemble that tools/export_hf.py wrote, perhaps trained further
elsewhere: with its run's own config every zero stays where it was. The config's sizes must be the model's,
data.tokenizer its tokenizer, and classes of pictures in its order. The result is step 0 in run.dir, which must have no
checkpoint yet.
"""

import argparse
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.families import load_config


def main() -> int:
    """Parse the command line and import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint to start from")
    parser.add_argument("--noise", type=float, default=0.0, help="noise in the trails, in standard deviations")
    arguments, rest = parser.parse_known_args()
    path, ds_config, overrides = parse_command_line(rest)
    config = load_config(path, overrides, ds_config)

    from nt_dist.export.importing import check, import_run, open_foreign
    from nt_dist.parallel.mesh import close, init_mesh
    from nt_dist.training.run_folder import claim

    foreign = open_foreign(arguments.model, config.family)
    check(foreign, config, arguments.noise)
    mesh = init_mesh(config)
    with claim(Path(config.run.dir)):
        data = config.family.open_data(config, True, lambda work: work())
        path, pruned = import_run(foreign, config, mesh, data, arguments.noise)
    print(
        f"{path}: {pruned.kept:,} of {pruned.found:,} non-zero weights kept"
        + (f", the largest that went is {pruned.largest_lost:.3g}" if pruned.kept < pruned.found else "")
    )
    close()
    return 0


if __name__ == "__main__":
    run_main(main)
