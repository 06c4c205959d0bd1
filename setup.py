"""The package nt_dist. Ranges are given here, the versions that were tested together in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "nt_dist" / "__init__.py").read_text()).group(1)

MPI = ["mpi4py>=4.0", "openmpi>=5.0"]
EVAL = [
    "transformers>=5.0",
    "tokenizers>=0.22",
    "protobuf>=5.0",
    "torchmetrics>=1.5",
    "lm_eval>=0.4.9",
    "accelerate>=1.0",
]

setup(
    name="nt_dist",
    version=VERSION,
    description="Distributed training of NeuroTrails: sparse ensembles of language models that grow out of one trunk",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nt_dist", "nt_dist.*"]),
    package_data={"nt_dist.kernels": ["*.cpp", "*.inc"]},  # compiled where they are used
    python_requires=">=3.11,<3.13",
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8,<0.20",
        "megatron-core>=0.16.1,<0.17",
        "sentencepiece>=0.2",
        "datasets>=4.0",
        "tensorboard>=2.19",
        "tqdm>=4.66",
        "safetensors>=0.5",
        "numpy>=1.26",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "pydantic>=2.0",
        "pillow>=10.0",
        "matplotlib>=3.9",
        "pyarrow>=15.0",
        "zstandard>=0.22",
    ],
    extras_require={
        "mpi": MPI,
        "eval": EVAL,
        "wandb": ["wandb>=0.19"],
        "mlflow": ["mlflow-skinny>=3.0"],
        "triton": ["triton==3.9.0"],  # for tests beside a CPU's torch: each CUDA build brings the version that it needs
        "dev": [*MPI, *EVAL, "pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9"],
    },
)
