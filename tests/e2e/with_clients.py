"""Drives exports with PEFT and ONNX: ``python with_clients.py ENSEMBLE TRAIL``; nothing of ours can be imported.

Each adapter and soft prompt of PEFT has to write, with a cache and without one, what whole passes predict; a model that
was exported to ONNX with a dynamic length has to give the same logits, also of padded texts.
"""

import sys
import tempfile
from pathlib import Path

import onnxruntime
import peft
import torch
from transformers import AutoModelForCausalLM

PROMPT = torch.randint(3, 300, (1, 6), generator=torch.Generator().manual_seed(1))
COUNT = 6
CONFIGS = {
    "LoRA": peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10, target_modules=["q_proj", "v_proj"]),
    "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=4),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=4),
}


def load(folder: str):
    """Load an export that never ends a text by itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def check_peft(folder: str, kind: str) -> None:
    """Compare what a random adapter writes with what it predicts pass by pass."""
    config = CONFIGS[kind]
    config.task_type = "CAUSAL_LM"
    model, generator = peft.get_peft_model(load(folder), config).eval(), torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    text = PROMPT
    for _ in range(COUNT):
        text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], 1)
    for use_cache in (True, False):
        how = {"max_new_tokens": COUNT, "do_sample": False, "use_cache": use_cache}
        written = model.generate(input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), **how)
        assert torch.equal(written, text), (folder, kind, use_cache, written, text)


class Logits(torch.nn.Module):
    """What a model without a cache predicts."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask, use_cache=False).logits


@torch.no_grad()
def check_onnx(folder: str) -> None:
    """Compare logits at other lengths than the one that was exported."""
    model, length = Logits(load(folder)), torch.export.Dim("length", min=2, max=32)
    inputs = {"input_ids": PROMPT.expand(2, -1), "attention_mask": torch.ones(2, PROMPT.shape[1], dtype=torch.long)}
    program = torch.onnx.export(
        model, (), kwargs=inputs, dynamic_shapes={name: {1: length} for name in inputs}, dynamo=True
    )
    with tempfile.TemporaryDirectory() as place:
        program.save(Path(place) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(place) / "model.onnx")
        for count in (12, 7, 20):
            tokens = torch.randint(0, 300, (2, count), generator=torch.Generator().manual_seed(count))
            mask = (torch.arange(count) >= torch.tensor([[0], [3]])).long()
            (found,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
            torch.testing.assert_close(
                torch.from_numpy(found)[mask.bool()], model(tokens, mask)[mask.bool()], rtol=1e-4, atol=1e-4
            )


if __name__ == "__main__":
    ensemble, trail = sys.argv[1:]
    for name in CONFIGS:
        check_peft(ensemble, name)
    for name in ("LoRA", "AdaLoRA", "IA3"):  # PEFT 0.21.2 does not find the cache of transformers 5.24's own LLaMA:
        check_peft(trail, name)  # prompts go before every token that such a model writes
    check_onnx(ensemble)
    print(f"PEFT {peft.__version__}: {', '.join(CONFIGS)}; ONNX Runtime {onnxruntime.__version__}: passed")
