"""Makes ALGPT2 known to PEFT: its adapters go, by default, where those of a GPT-2 go."""

from peft.utils import constants

from algpt2.configuration import ALGPT2Config

# Tables from the type of a model to the modules that a kind of adapter takes.
for table in list(vars(constants).values()):
    if isinstance(table, dict) and "gpt2" in table:
        table.setdefault(ALGPT2Config.model_type, table["gpt2"])
