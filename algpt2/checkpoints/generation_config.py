"""How `generate` continues texts by default: generation_config.json, checked before transformers believes it."""

from transformers import GenerationConfig

from algpt2.errors import InputError
from algpt2.files.reading import read_json

GENERATION_FILE = "generation_config.json"


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value):
    return _is_integer(value) and value >= 0


def _is_number(value):
    return _is_integer(value) or isinstance(value, float)


def _are_integers(value):
    return isinstance(value, list) and all(map(_is_integer, value))


def _are_lists_of_integers(value):
    return isinstance(value, list) and all(map(_are_integers, value))


def _are_texts(value):
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


# What a value must be, and the settings of which that is true; `null` leaves any of them as by default.
KINDS = {
    "an integer from 0": (
        _is_count,
        "max_length max_new_tokens min_length min_new_tokens num_beams num_beam_groups num_return_sequences top_k "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size max_cache_len prefill_chunk_size num_assistant_tokens "
        "assistant_early_exit assistant_lookbehind target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size",
    ),
    "a number": (
        _is_number,
        "temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty "
        "encoder_repetition_penalty guidance_scale penalty_alpha diversity_penalty max_time "
        "assistant_confidence_threshold assistant_ensemble_weight",
    ),
    "true or false": (
        lambda value: isinstance(value, bool),
        "do_sample use_cache use_mtp renormalize_logits remove_invalid_values token_healing is_assistant low_memory "
        "disable_compile output_attentions output_hidden_states output_scores output_logits return_dict_in_generate",
    ),
    "the id of a token": (_is_integer, "bos_token_id pad_token_id decoder_start_token_id forced_bos_token_id"),
    "the id of a token, or a list of them": (
        lambda value: _is_integer(value) or _are_integers(value),
        "eos_token_id forced_eos_token_id",
    ),
    "a list of ids of tokens": (_are_integers, "suppress_tokens begin_suppress_tokens"),
    "a list of lists of ids of tokens": (_are_lists_of_integers, "bad_words_ids"),
    "a text, or a list of them": (_are_texts, "stop_strings"),
    "a text": (lambda value: isinstance(value, str), "cache_implementation num_assistant_tokens_schedule"),
    "true, false or 'never'": (lambda value: isinstance(value, bool) or value == "never", "early_stopping"),
    "an object": (lambda value: isinstance(value, dict), "cache_config watermarking_config"),
    "a list of two numbers": (
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "exponential_decay_length_penalty",
    ),
    "a list of pairs of a list of ids and a number": (
        lambda value: (
            isinstance(value, list)
            and all(
                isinstance(pair, list) and len(pair) == 2 and _are_integers(pair[0]) and _is_number(pair[1])
                for pair in value
            )
        ),
        "sequence_bias",
    ),
}
SETTINGS = {name: (kind, is_one) for kind, (is_one, names) in KINDS.items() for name in names.split()}


def check_generation_settings(values, source):
    """Raise an InputError if a setting of generation is of a wrong type.

    Args:
        values: dict of str to value, also of other things than generation.
        source: path. Names the settings in the error.
    """
    for name, value in values.items():
        kind, is_one = SETTINGS.get(name, ("", None))
        if is_one and value is not None and not is_one(value):
            raise InputError(f"{source}: {name} is {value!r}; expected {kind}")


def read_generation_config(directory, config, tokens):
    """How `generate` continues texts by default.

    Args:
        directory: `Path` of a checkpoint.
        config: `ALGPT2Config`, used where there is no generation_config.json.
        tokens: dict of str to int or `None`. The special tokens, which are not taken from generation_config.json.

    Returns:
        `transformers.GenerationConfig`.

    Raises:
        InputError: if generation_config.json is damaged.
    """
    path = directory / GENERATION_FILE
    try:
        if not path.exists():
            check_generation_settings(config.to_dict(), directory)
            return GenerationConfig.from_model_config(config)
        check_generation_config(directory)
        return GenerationConfig.from_pretrained(directory, **tokens)
    except InputError:
        raise
    except Exception as error:  # of whatever kind transformers raises
        raise InputError(f"{path}: {error}; correct it, or delete it") from error


def check_generation_config(directory):
    """Raise an InputError if a directory, a `Path`, has a generation_config.json that transformers fails at."""
    path = directory / GENERATION_FILE
    if not path.exists():
        return
    stored = read_json(path)
    check_generation_settings(stored, path)
    methods = [name for name in stored if callable(getattr(GenerationConfig, name, None))]
    if methods:
        raise InputError(f"{path}: {methods[0]} is no setting of generation; remove it")
