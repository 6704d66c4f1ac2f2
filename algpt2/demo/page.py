"""The page of the demo, in Gradio."""

import contextlib
import errno
import html
import socket
import time

import numpy as np

from algpt2.demo import losses
from algpt2.errors import InputError
from algpt2.generation.continuation import Sampling

PROMPT = "The meaning of"
# Of all that the page offers: a model keeps the settings of the text that it continues.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models"}
CSS = """
.losses { white-space: pre-wrap; line-height: 1.9; overflow-wrap: anywhere; }
.losses span { border-radius: 3px; padding: 1px 0; }
"""


def page(models):
    """The page.

    Args:
        models: list of `algpt2.demo.models.DemoModel`.

    Returns:
        `gradio.Blocks`.
    """
    import gradio as gr

    with gr.Blocks(title="ALGPT2", analytics_enabled=False) as blocks:
        gr.Markdown("# ALGPT2\n" + "\n".join(f"- **{model.name}**: {model.summary}" for model in models))
        with gr.Tab("Continue"):
            _continuation_tab(gr, models)
        with gr.Tab("Loss of tokens"):
            _loss_tab(gr, models)
        with gr.Tab("Perplexity"):
            _perplexity_tab(gr, models)
    return blocks


def launch(blocks, host, port):
    """Serve a page until it is interrupted.

    Args:
        blocks: `gradio.Blocks`.
        host: str.
        port: int; 0 takes one that is free.

    Raises:
        InputError: if it cannot be served there.
    """
    import gradio as gr

    # The fonts of the default theme come from the network.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks.queue()
    try:
        # Gradio looks for another port whatever is wrong.
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise InputError(f"cannot serve at {host}:{port} ({error.strerror}); give another {flag}") from error
    try:
        blocks.launch(
            server_name=host, server_port=port or None, theme=theme, css=CSS, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise InputError(f"cannot serve at {host}:{port} ({error}); give another --port") from error
    print(f"serving at {blocks.local_url}; Ctrl-C ends it", flush=True)
    blocks.block_thread()


def _continuation_tab(gr, models):
    prompt = gr.Textbox(PROMPT, label="Text", lines=4, elem_id="prompt")
    with gr.Row():
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0 takes the likeliest token")
        top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p")
        top_k = gr.Slider(0, 200, 0, step=1, label="Top-k", info="0 draws among all tokens")
    with gr.Row():
        penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty")
        length = gr.Slider(1, 500, 100, step=1, label="Length", info="The most tokens to add")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    with gr.Row():
        run = gr.Button("Continue", variant="primary", elem_id="continue")
        stop = gr.Button("Stop", variant="stop", elem_id="stop")
    with gr.Row():
        outputs = [
            gr.Textbox(label=model.name, info=model.summary, lines=14, max_lines=14, elem_id=f"continuation-{number}")
            for number, model in enumerate(models)
        ]

    def continue_all(text, temperature, top_p, top_k, penalty, length, seed):
        chosen = {"temperature": temperature, "top_p": top_p, "top_k": int(top_k) or None} if temperature else {}
        sampling = Sampling(repetition_penalty=penalty, seed=int(seed or 0), **chosen)
        shown = ["" for _ in models]
        yield shown
        for place, model in enumerate(models):
            told = 0.0
            with _errors_shown(gr):
                for part in model.continue_text(text, sampling, int(length)):
                    shown[place] += part
                    # A small model is faster than the page.
                    if time.monotonic() - told > 0.05:
                        yield shown
                        told = time.monotonic()
            yield shown

    inputs = [prompt, temperature, top_p, top_k, penalty, length, seed]
    events = [trigger(continue_all, inputs, outputs, **ONE_AT_A_TIME) for trigger in (run.click, prompt.submit)]
    stop.click(None, cancels=events)


def _loss_tab(gr, models):
    text = gr.Textbox(label="Text", lines=8, placeholder="Paste a text", elem_id="loss-text")
    run = gr.Button("Show the loss of every token", variant="primary", elem_id="loss")
    gr.Markdown(
        "The redder, the less the model expected the token; the title of a token tells its loss in nats."
        + ("\n\nBelow, where a model is worse than the first, red, and better, blue." if len(models) > 1 else "")
    )
    shown = gr.HTML(elem_id="losses")

    def show(value):
        with _errors_shown(gr):
            return _loss_html(models, value)

    run.click(show, text, shown, **ONE_AT_A_TIME)


def _loss_html(models, text):
    """Every model's colours, then those of its difference from the first if both split the text in the same way."""
    sections, first = [], None
    for model in models:
        ids, found = model.token_losses(text)
        parts = losses.pieces(model.tokenizer, text, ids, found)
        mean = float(np.nanmean(found))
        sections.append((f"{model.name}: loss {mean:.3f}, perplexity {np.exp(mean):,.1f}", losses.coloured(parts)))
        if first is None:
            first = parts
        elif [part for part, _ in parts] == [part for part, _ in first]:
            sections.append((f"{model.name} less {models[0].name}", losses.coloured(parts, first)))
        else:
            sections.append((f"{model.name} less {models[0].name}", "Their tokenizers split the text differently."))
    return "".join(f"<h3>{html.escape(title)}</h3><div class='losses'>{body}</div>" for title, body in sections)


def _perplexity_tab(gr, models):
    text = gr.Textbox(label="Text", lines=8, placeholder="Paste a text, the longer the better", elem_id="figure-text")
    run = gr.Button("Draw", variant="primary", elem_id="draw")
    gr.Markdown("Perplexity is per token of each model's own tokenizer. Dotted: the depth of the checkpoint.")
    with gr.Row():
        position = gr.Plot(label="By position", show_label=False, elem_id="by-position")
        depth = gr.Plot(label="By depth", show_label=False, elem_id="by-depth")

    def draw(value):
        with _errors_shown(gr):
            positions = {
                model.name: losses.by_position(model.token_losses(value)[1], model.config.n_positions)
                for model in models
            }
            yield losses.draw(positions, "position"), None
            depths = {model.name: sorted(model.losses_at_depths(value).items()) for model in models}
            yield (
                losses.draw(positions, "position"),
                losses.draw(depths, "depth", [model.config.n_layer for model in models]),
            )

    run.click(draw, text, [position, depth], **ONE_AT_A_TIME)


@contextlib.contextmanager
def _errors_shown(gr):
    """Errors of a user as Gradio shows them."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error)) from error
