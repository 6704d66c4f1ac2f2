"""Continue a text in TensorFlow: `python -m algpt2_tf.generate DIR PROMPT`."""

import keras
from keras_hub.samplers import GreedySampler, RandomSampler, TopKSampler, TopPSampler

from algpt2.commands import generate_parser, prepare_prompt
from algpt2.errors import exit_on_error
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel


def select_sampler(arguments):
    """The KerasHub sampler that the command line asks for.

    Args:
        arguments: `argparse.Namespace` of `algpt2.commands.generate_parser`.
    """
    options = {"seed": arguments.seed, "temperature": arguments.temperature or 1.0}
    if arguments.top_p:
        return TopPSampler(p=arguments.top_p, k=arguments.top_k, **options)
    if arguments.top_k:
        return TopKSampler(k=arguments.top_k, **options)
    return RandomSampler(**options) if arguments.temperature else GreedySampler()


def main(argv=None):
    parser = generate_parser("python -m algpt2_tf.generate", "Continue a text with a checkpoint, in TensorFlow.")
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        directory, _, max_length = prepare_prompt(arguments.checkpoint, arguments.prompt, arguments.max_new_tokens)
        keras.utils.set_random_seed(arguments.seed)
        model = TFALGPT2LMHeadModel.from_pretrained(directory)
        model.compile(sampler=select_sampler(arguments))
        print(model.generate(arguments.prompt, max_length=max_length))


if __name__ == "__main__":
    main()
