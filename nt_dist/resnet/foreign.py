"""ResNets of other programs: transformers' ResNetForImageClassification, our own exports."""

from typing import Any

from nt_dist.errors import DataError
from nt_dist.files import read_json
from nt_dist.model.foreign import EXPORT_ONLY, Foreign, exported_problems, exported_sizes
from nt_dist.resnet.names import NORM_EPS, ensemble_key, ensemble_settings, hidden_sizes, shared_settings, trail_key


class Dense(Foreign):
    """transformers' ResNetForImageClassification; every trail of ours is taken from the same blocks."""

    title = "a dense ResNet"
    sign = "a ResNetForImageClassification (resnet.embedder.embedder.convolution.weight)"
    model_types = ("resnet",)
    without_effect = frozenset({"hidden_sizes", "out_features", "out_indices", "stage_names"})  # rules has the first

    @classmethod
    def fits(cls, shapes):
        return "resnet.embedder.embedder.convolution.weight" in shapes

    def key(self, config, spec, trail):
        return trail_key(config, spec.name)

    def sizes(self, config):
        return shared_settings(config)

    def defaults(self):
        """See :meth:`Foreign.defaults`: those of transformers' ResNetConfig."""
        labels = len(self.settings.get("id2label") or ("", ""))
        return {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "embedding_size": 64, "num_labels": labels}

    def same(self, config):
        same = {"hidden_act": "relu", "num_channels": 3}
        return same | {"downsample_in_first_stage": False, "downsample_in_bottleneck": False}

    def rules(self, config):
        settings, file, model = self.settings, self.settings_file, config.model
        sizes, ours = list(settings.get("hidden_sizes") or (256, 512, 1024, 2048)), hidden_sizes(config)
        if sizes != [sizes[0] << stage for stage in range(len(sizes))]:
            yield f"{file}: hidden_sizes = {sizes} must double from stage to stage"
        elif sizes[0] != ours[0]:
            width = sizes[0] // (4 if settings.get("layer_type", "bottleneck") == "bottleneck" else 1)
            yield f"model.width = {model.width} must be {width} for hidden_sizes = {sizes} of the imported model"
        if model.stem != "large":
            yield f"model.stem = {model.stem!r} must be 'large': a ResNetForImageClassification has no other"
        if model.norm_eps != NORM_EPS:
            yield f"model.norm_eps = {model.norm_eps:g} must be {NORM_EPS:g}, which transformers' batch norms add"

    def check_data(self, config, data):
        """Order of the classes, and the colours' means and deviations; see :meth:`Foreign.check_data`."""
        labels = self.settings.get("id2label") or {}
        theirs, ours = [labels.get(str(number)) for number in range(len(labels))], data.identity["classes"]
        if theirs != ours and len(theirs) == len(ours) and set(theirs) == set(ours):
            number = next(number for number, pair in enumerate(zip(theirs, ours, strict=True)) if len(set(pair)) == 2)
            raise DataError(
                f"the data's class {number} is {ours[number]!r}, the imported model's {theirs[number]!r}: they must be "
                "in the same order"
            )
        for key, name in (("mean", "image_mean"), ("std", "image_std")):
            value, given = list(getattr(config.data, key)), self._of_processor(name)
            if given is not None and given != value:
                raise DataError(f"data.{key} = {value} is not the imported model's; set data.{key}={given}")

    def _of_processor(self, name: str) -> Any:
        """What the image processor beside the model says, if there is one."""
        file = self.path / "preprocessor_config.json"
        said = read_json(file, DataError) if file.is_file() else {}
        if not isinstance(said, dict):
            raise DataError(f"{file}: cannot be read: it must hold an object")
        return said.get(name)


class Exported(Dense):
    """An ensemble that tools/export_hf.py wrote, perhaps trained further elsewhere; its trails stay what they are."""

    title = "an exported ensemble"
    sign = "an exported ensemble (trails.0.classifier.weight)"
    model_types = ("neurotrails_resnet",)
    without_effect = EXPORT_ONLY | {"image_size"}  # a ResNet computes the same at any

    @classmethod
    def fits(cls, shapes):
        return "trails.0.classifier.weight" in shapes

    def key(self, config, spec, trail):
        return ensemble_key(config, spec.name, trail)

    def sizes(self, config):
        ours = {f"model.{name}": (name, value) for name, value in ensemble_settings(config).items()}
        del ours["model.image_size"]
        return ours | {"model.num_classes": ("num_labels", config.model.num_classes)} | exported_sizes(config)

    def defaults(self):
        return {"num_labels": super().defaults()["num_labels"]}

    def same(self, config):
        return {}

    def rules(self, config):
        return exported_problems(self, config)
