"""Writes a trained ensemble as a folder that Hugging Face transformers loads.

    python tools/export_hf.py --checkpoint runs/quickstart --out exported
    python tools/export_hf.py --checkpoint runs/quickstart --out exported-trail --trail 1

The first is one AutoModelForCausalLM or AutoModelForImageClassification (with trust_remote_code) of all trails, with
its modeling file, tokenizer or image processor, and a card with the run's figures; it needs neither this package nor
DeepSpeed. --trail writes trunk and one trail as a plain LlamaForCausalLM or ResNetForImageClassification; the latter
has the large stem only, and no pre-activation. --sparse, of models that write text, adds sparse.safetensors, whose size
follows the density, and which the model class reads with from_sparse(folder), holding matrices sparse where that is
faster on the machine at hand. What was written is read back and its logits are compared before the folder gets its
name. The folder must be empty or not there. The checkpoint may be a run's folder: then it is the newest one.
"""

import argparse
import importlib.util
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.errors import RunError


def main() -> int:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, folder of checkpoints or run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, empty or not there")
    parser.add_argument("--trail", type=int, help="write trunk and this trail, from 1, as a model of transformers' own")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--sparse", action="store_true", help="write sparse.safetensors as well")
    parser.add_argument("--tokenizer", type=Path, help="the run's tokenizer file, where it is not found by itself")
    parser.add_argument("--prepared", type=Path, help="the run's prepared texts, where they are elsewhere now")
    arguments = parser.parse_args()

    if importlib.util.find_spec("transformers") is None:
        raise RunError('an export needs transformers: pip install "nt_dist[eval]"')
    from nt_dist.export.huggingface import export  # takes seconds: torch and transformers
    from nt_dist.files import check_free
    from nt_dist.inference import load_ensemble

    check_free(arguments.out)
    ensemble = load_ensemble(arguments.checkpoint, tokenizer=arguments.tokenizer, prepared=arguments.prepared)
    done = export(ensemble, arguments.out, arguments.trail, arguments.dtype, arguments.sparse)
    print(
        f"{done.path}: {done.num_parameters:,} parameters, {done.num_bytes / 1e6:,.1f} MB; "
        f"read back, the largest difference of a logit is {done.difference:.2g}"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
