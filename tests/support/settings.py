"""The training settings as the config reference lists them."""

import inspect
import re
from dataclasses import asdict

from visionkit.config import TrainConfig
from visionkit.config.schema import expected, signature_arguments


def settings():
    """Name, allowed values, default and help of each setting; the help is the comment."""
    source = inspect.getsource(TrainConfig)
    help_texts = dict(re.findall(r"^    (\w+): .*?  # (.+)$", source, re.MULTILINE))
    defaults = asdict(TrainConfig())
    return [
        (name, expected(argument.annotation), defaults[name], help_texts[name])
        for name, argument in signature_arguments(TrainConfig).items()
    ]
