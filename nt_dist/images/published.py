"""What others published on the data sets that ``data.benchmark`` names; comparisons print it beside runs on them."""

from collections.abc import Sequence


def _baselines(name: str, network: str, single: str, ensemble: str) -> str:
    return (
        f"Published on {name} (accuracy / NLL / ECE): {network} single {single}, ensemble of four {ensemble} "
        "(Uncertainty Baselines, Nado et al., arXiv 2106.04015)."
    )


PUBLISHED: dict[str, Sequence[str]] = {
    "none": (),
    "cifar10": (_baselines("CIFAR-10", "WRN-28-10", "96.0 % / 0.159 / 0.023", "96.6 % / 0.114 / 0.010"),),
    "cifar100": (_baselines("CIFAR-100", "WRN-28-10", "79.8 % / 0.875 / 0.086", "82.7 % / 0.666 / 0.021"),),
    "imagenet": (
        _baselines("ImageNet", "ResNet-50", "76.2 % / 0.939 / 0.032", "77.9 % / 0.857 / 0.017"),
        "Published on ImageNet (accuracy): ResNet-50 at density 0.2 (ERK), trained five times as long, 77.17 % (RigL, "
        "Evci et al., arXiv 1911.11134).",
    ),
}
