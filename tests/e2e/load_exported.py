"""Loads an exported ensemble, or a trail, as someone who has transformers only, and prints what it does as JSON.

    python tests/e2e/load_exported.py FOLDER [TOKENS ANSWER]

Nothing of nt_dist, DeepSpeed and megatron-core can be imported here. The same text must come out with and without a
key-value cache, greedily and with beams. TOKENS is JSON, [batch, sequence]; the model's answer to them goes into the
file ANSWER.
"""

import json
import sys

for name in ("nt_dist", "deepspeed", "megatron"):
    sys.modules[name] = None  # an import raises ModuleNotFoundError

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main(folder: str, tokens: str | None = None, answer: str | None = None) -> None:
    """Load, generate in several ways that must agree, and answer."""
    here = {"trust_remote_code": True, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **here)
    tokenizer = AutoTokenizer.from_pretrained(folder, **here)
    prompt = tokenizer("The old", return_tensors="pt")
    said = {"type": model.config.model_type}
    for beams in (1, 3):
        settings = {**prompt, "max_new_tokens": 9, "do_sample": False, "num_beams": beams}
        made = [model.generate(**settings, use_cache=use_cache) for use_cache in (True, False)]
        assert torch.equal(*made), f"with and without a cache, {beams} beams: {made}"
        if beams == 1:
            static = model.generate(**settings, cache_implementation="static")
            assert torch.equal(static, made[0]), f"with a static cache: {static}"
        said[f"beams {beams}"] = made[0][0].tolist()
    said["text"] = tokenizer.decode(said["beams 1"], skip_special_tokens=True)
    if tokens:
        batch = torch.tensor(json.loads(tokens))
        with torch.no_grad():
            more = {"output_trail_logits": True} if model.config.model_type == "neurotrails" else {}
            result = model(batch, labels=batch, **more)
        found = {"logits": result.logits, "loss": result.loss}
        torch.save(found | ({"trails": result.trail_logits} if more else {}), answer)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
