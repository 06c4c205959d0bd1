"""Loads an exported model of pictures as someone who has transformers only, and prints what it says as JSON.

    python tests/e2e/load_exported_pictures.py FOLDER PICTURE…

Nothing of nt_dist, DeepSpeed and torchvision can be imported here. Remote code is trusted where the folder has any.
"""

import json
import sys
from pathlib import Path

for name in ("nt_dist", "deepspeed", "megatron", "torchvision"):
    sys.modules[name] = None  # an import raises ModuleNotFoundError

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline  # noqa: E402


def main(folder: str, *paths: str) -> None:
    """Load, and classify at once and by the pipeline."""
    is_ensemble = any(Path(folder).glob("*.py"))
    here = {"trust_remote_code": is_ensemble, "local_files_only": True}
    model = AutoModelForImageClassification.from_pretrained(folder, **here)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    inputs = processor([Image.open(path) for path in paths], return_tensors="pt")
    with torch.no_grad():
        answer = model(**inputs, **({"output_trail_logits": True} if is_ensemble else {}))
    said = {"type": model.config.model_type, "labels": model.config.id2label, "logits": answer.logits.tolist()}
    if is_ensemble:
        said["trails"] = answer.trail_logits.tolist()
    classify = pipeline("image-classification", model=folder, trust_remote_code=is_ensemble)
    said["pipeline"] = [classify(path, top_k=1)[0] for path in paths]
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
