"""The packages to install. `pyproject.toml` has all else, but cannot add folders to those found.

`configs/` is installed as `visionkit/configs/`.
"""

from setuptools import find_namespace_packages, find_packages, setup

configs = [f"visionkit.configs.{name}" for name in find_namespace_packages("configs")]
setup(
    packages=[*find_packages(include=["visionkit*"]), "visionkit.configs", *configs],
    package_dir={"visionkit.configs": "configs"},
)
