"""The training settings as the config reference lists them."""

from dataclasses import asdict

from visionkit.config import TrainConfig
from visionkit.config.schema import expected, signature_arguments
from visionkit.config.starter import help_texts


def settings():
    """Name, allowed values, default and help of each setting; the help is the comment."""
    texts = help_texts(TrainConfig)
    defaults = asdict(TrainConfig())
    return [
        (name, expected(argument.annotation), defaults[name], texts[name])
        for name, argument in signature_arguments(TrainConfig).items()
    ]
