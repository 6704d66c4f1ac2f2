"""Makes ALGPT2's configuration known to transformers' `AutoConfig`.

Not in configuration.py: the copy of that file that travels with a model must not replace this class.
"""

from transformers import AutoConfig

from algpt2.configuration import ALGPT2Config

AutoConfig.register("algpt2", ALGPT2Config, exist_ok=True)
