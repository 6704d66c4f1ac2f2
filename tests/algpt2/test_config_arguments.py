"""What command lines say of a configuration."""

import pytest

from algpt2 import ALGPT2Config
from algpt2.config_arguments import parse_overrides


def test_overrides_of_a_command_line_make_the_configuration():
    assignments = (
        "n_embd=64 hidden_size=48 embedding_size=null resid_pdrop=0 tie_word_embeddings=false "
        "layer_schedule=[0,1,0] activation_function=relu layer_norm_epsilon=1e-6 eos_token_id=[1,2]"
    )
    overrides = parse_overrides(assignments.split())
    config = ALGPT2Config.from_preset("algpt2-tiny", **overrides)
    assert (config.n_embd, config.embedding_size, config.resid_pdrop) == (48, None, 0)
    assert config.tie_word_embeddings is False and config.layer_schedule == [0, 1, 0] and config.n_layer == 3
    assert (config.activation_function, config.layer_norm_epsilon, config.eos_token_id) == ("relu", 1e-6, [1, 2])
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("n_embed=64", "unknown field 'n_embed'"),
        ("architectures=[]", "unknown field 'architectures'"),
        ("n_embd", "'n_embd' is not of the form field=value"),
        ("n_embd=wide", "n_embd must be int, but is 'wide'"),
        ("n_embd=64.0", "n_embd must be int, but is '64.0'"),
        ("hidden_size=true", "hidden_size must be int, but is 'true'"),
        ("n_inner=", r"n_inner must be int \| null, but is ''"),
        ("tie_projections=yes", "tie_projections must be bool, but is 'yes'"),
        ("layer_schedule=cycle:2", r"layer_schedule must be list\[int\] \| null, but is 'cycle:2'"),
        ("layer_schedule=[0, true]", "layer_schedule must be list"),
    ],
)
def test_wrong_overrides_name_the_field_and_list_those_there_are(assignment, message):
    with pytest.raises(ValueError, match=message + ".*fields of the configuration are vocab_size, n_positions, n_embd"):
        parse_overrides(["n_head=3", assignment])
