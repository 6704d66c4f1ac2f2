"""Continue a text in PyTorch: `python -m algpt2_pt.generate DIR PROMPT`."""

import torch
from transformers import set_seed

from algpt2.commands import generate_parser, prepare_prompt
from algpt2.errors import exit_on_error
from algpt2_pt.evaluate import load_for_inference


def main(argv=None):
    parser = generate_parser("python -m algpt2_pt.generate", "Continue a text with a checkpoint, in PyTorch.")
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        directory, tokenizer, max_length = prepare_prompt(
            arguments.checkpoint, arguments.prompt, arguments.max_new_tokens
        )
        model = load_for_inference(directory).to("cuda" if torch.cuda.is_available() else "cpu")
        inputs = tokenizer(arguments.prompt, return_tensors="pt").to(model.device)
        set_seed(arguments.seed)
        sampling = {"do_sample": False}
        if arguments.temperature or arguments.top_k or arguments.top_p:
            sampling = {
                "do_sample": True,
                "temperature": arguments.temperature or 1.0,
                "top_k": arguments.top_k or 0,
                "top_p": arguments.top_p or 1.0,
            }
        output = model.generate(**inputs, max_length=max_length, pad_token_id=tokenizer.pad_token_id, **sampling)
        print(tokenizer.decode(output[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
