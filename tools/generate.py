"""Writes text with a trained ensemble.

    python tools/generate.py --checkpoint runs/quickstart --prompt "import "
    python tools/generate.py --checkpoint runs/quickstart --prompt "def " --uncertainty mutual_information
    cat prompt.txt | python tools/generate.py --checkpoint runs/quickstart --prompt - --samples 3 --stop "\\n\\n"

The text appears as it is written, up to --max_tokens, the end of a document, or a text of --stop, in which \\n is a new
line. Of several --samples each begins with a line of its number and seed. With --uncertainty it is coloured in a
terminal, from green (surer than most of what was written before) over yellow to red, with a legend in nats at the end;
into a file or a pipe each piece is a line, its uncertainty in nats before it. The same --seed gives the same text. The
checkpoint may be a run's folder: then it is the newest one.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.errors import ConfigError
from nt_dist.files import reading


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, folder of checkpoints or run")
    parser.add_argument("--prompt", default="", help="beginning of the text, - to read standard input (default: none)")
    parser.add_argument("--max_tokens", type=int, default=200, help="tokens to write at most (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the most likely token (default 0.8)")
    parser.add_argument("--top_p", type=float, default=0.95, help="share of probability drawn from (default 0.95)")
    parser.add_argument("--top_k", type=int, default=0, help="number of tokens drawn from; 0: all (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1, help="texts to write, each with the next seed (default 1)")
    parser.add_argument("--stop", action="append", default=[], help="text to end before; may be given again")
    parser.add_argument("--combine", default="prob", help="prob, logit or a trail's number, from 1 (default prob)")
    parser.add_argument("--uncertainty", choices=["none", "mutual_information", "entropy"], default="none")
    parser.add_argument("--tokenizer", type=Path, help="the run's tokenizer file, where it is not found by itself")
    parser.add_argument("--prepared", type=Path, help="the run's prepared texts, where they are elsewhere now")
    parser.add_argument(
        "--weights",
        choices=["float32", "bfloat16"],
        default="float32",
        help="round them to bfloat16: on CPUs less to read for every token, so faster; the text can differ",
    )
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:1 (default cpu)")
    arguments = parser.parse_args()

    import torch  # takes seconds

    from nt_dist.inference import load_ensemble
    from nt_dist.inference.ensemble import parse_combination, parse_device
    from nt_dist.inference.generate import Sampling, check_prompt, generate, write
    from nt_dist.inference.sparse import hold_sparse

    with reading("the standard input"):
        prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    check_prompt(prompt, "the standard input" if arguments.prompt == "-" else "--prompt")
    for text in arguments.stop:
        check_prompt(text, "--stop")
    counts = {"--max_tokens": arguments.max_tokens, "--samples": arguments.samples}
    if problems := [f"{key} {count} must be at least 1" for key, count in counts.items() if count < 1]:
        raise ConfigError(problems)
    stop = [text.replace("\\n", "\n") for text in arguments.stop]
    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed, arguments.top_k)
    replace(sampling, seed=arguments.seed + arguments.samples - 1)  # which must be one too
    device = parse_device(arguments.device)
    ensemble = load_ensemble(arguments.checkpoint, device, tokenizer=arguments.tokenizer, prepared=arguments.prepared)
    ensemble.check_task("text-generation")
    hold_sparse(ensemble.model, getattr(torch, arguments.weights))
    how = parse_combination(arguments.combine, ensemble.num_trails, "--combine")
    kind = arguments.uncertainty
    for number in range(arguments.samples):
        own = replace(sampling, seed=sampling.seed + number)
        if arguments.samples > 1:
            print(f"--- sample {number + 1} of {arguments.samples}, --seed {own.seed}")
        pieces = generate(ensemble, prompt, arguments.max_tokens, own, how, kind, stop)
        write(pieces, prompt, sys.stdout, kind)
    return 0


if __name__ == "__main__":
    run_main(main)
