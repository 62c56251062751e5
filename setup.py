"""What pyproject.toml cannot say: the packages there are, core and models under the name they are imported by."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["dime", "guided_diffusion*"]),
        *(f"dime.{name}" for name in find_packages(include=["core*", "models*"])),
    ]
)
