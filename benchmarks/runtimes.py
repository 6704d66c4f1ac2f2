"""Greedy decoding by ONNX Runtime and LiteRT, and by what else runs a GPT-2 on a CPU: CTranslate2 and llama.cpp."""

import importlib.util
import json
import os
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from workers import Work

from algpt2 import ALGPT2Config
from algpt2.benchmark.timing import cores
from algpt2.checkpoints.weights import weight_shapes
from algpt2.onnx.graph import language_model
from algpt2.onnx.session import OnnxLanguageModel

CTRANSLATE2 = {"CTranslate2": "float32", "CTranslate2, int8": "int8"}
LLAMA_CPP = {"llama.cpp": None, "llama.cpp, q8_0": "q8_0", "llama.cpp, q4_0": "q4_0"}
PEERS = (*CTRANSLATE2, *LLAMA_CPP)
PRODUCTS = ("onnx, q4, bare products", "onnx, int8, bare products")
ONNX = {"onnx": "float32", "onnx, int8": "int8", "onnx, q4": "q4", PRODUCTS[0]: "q4", PRODUCTS[1]: "int8"}
ONNX |= {"onnx, relaxed": "float32", "onnx, relaxed, int8": "int8", "onnx, relaxed, q4": "q4"}
# Every token anew from the whole text, or from the cache of the tokens before it.
LITERT = {"LiteRT, no cache": (None, False), "LiteRT": (None, True), "LiteRT, int8": ("int8", True)}
SPECIAL_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "t0")


def is_installed(name):
    """bool: whether there is what a variant takes."""
    packages = {"ctranslate2": CTRANSLATE2, "xllamacpp": LLAMA_CPP, "onnxruntime": ONNX, "ai_edge_litert": LITERT}
    return all(importlib.util.find_spec(package) for package, names in packages.items() if name in names)


def generator(name, prompt, count):
    """A `Work` that continues a prompt.

    Args:
        name: str, of `PEERS` or `ONNX`.
        prompt: int (batch, length).
        count: int. The new tokens.
    """
    if name in CTRANSLATE2:
        return ctranslate2_generator(prompt, count, CTRANSLATE2[name])
    if name in LLAMA_CPP:
        return llama_cpp_generator(prompt, count, LLAMA_CPP[name])
    return onnx_generator(prompt, count, ONNX[name], name in PRODUCTS, preset_of(name))


def preset_of(name):
    """str: the preset whose shape a variant of `ONNX` or `LITERT` has."""
    return "algpt2-relaxed" if "relaxed" in name else "algpt2"


def onnx_generator(prompt, count, precision, bare, preset):
    """As `generator`, of a preset with random weights; `bare` computes the products of the new tokens alone."""
    config, draw = ALGPT2Config.from_preset(preset), np.random.default_rng(0)
    weights = {name: draw.normal(0, 0.02, shape).astype("float32") for name, shape in weight_shapes(config).items()}
    model = language_model(config, weights, precision)
    if bare:
        return Work(bare_products(model, len(prompt), count), model.ByteSize())
    session = OnnxLanguageModel(model.SerializeToString(), thread_count())

    def generate():
        decoding = session.start(prompt, prompt.shape[1] + count)
        for _ in range(count - 1):
            decoding.advance(decoding.logits.argmax(-1))

    return Work(generate, session.size)


def bare_products(model, batch, count):
    """A function: the products of a model for `count` tokens, one after the other, without anything between them."""
    import onnxruntime
    from onnx import TensorProto, helper

    products = [node for node in model.graph.node if node.op_type in ("MatMulNBits", "MatMul", "Gemm")]
    nodes, inputs, outputs = [], {}, []
    for index, node in enumerate(products):
        columns = next(attribute.i for attribute in node.attribute if attribute.name == "K")
        inputs[columns] = helper.make_tensor_value_info(f"x{columns}", TensorProto.FLOAT, [batch, 1, columns])
        copy = helper.make_node(node.op_type, [f"x{columns}", *node.input[1:]], [f"y{index}"], domain=node.domain)
        copy.attribute.extend(node.attribute)
        nodes.append(copy)
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "products", list(inputs.values()), outputs, list(model.graph.initializer))
    bare = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = thread_count(), 3
    session = onnxruntime.InferenceSession(bare.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {f"x{columns}": np.ones((batch, 1, columns), "float32") for columns in inputs}

    def generate():
        for _ in range(count):
            session.run(None, values)

    return generate


def ctranslate2_generator(prompt, count, precision):
    """As `generator`, of a GPT-2 with random weights in CTranslate2."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as directory:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
        # CTranslate2 names tokens, and never the ids.
        names = Tokenizer(models.WordLevel({f"t{index}": index for index in range(50257)}, unk_token="t0"))
        PreTrainedTokenizerFast(tokenizer_object=names, **SPECIAL_TOKENS).save_pretrained(directory)
        converter = ctranslate2.converters.TransformersConverter(directory)
        converter.convert(f"{directory}/ct2", quantization=precision)
        model = ctranslate2.Generator(f"{directory}/ct2", intra_threads=thread_count())
        size = Path(directory, "ct2", "model.bin").stat().st_size
    tokens = [[f"t{index}" for index in row] for row in prompt]
    options = {"max_length": count, "min_length": count, "sampling_topk": 1, "include_prompt_in_result": False}
    return Work(lambda: model.generate_batch(tokens, **options), size)


def llama_cpp_generator(prompt, count, precision):
    """As `generator`, of a GPT-2 with random weights in llama.cpp's server; it takes the rows of a batch at once."""
    import xllamacpp

    from algpt2.checkpoints.checkpoint import opened
    from convert.exports.gguf import write

    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory, "gpt2")
        GPT2LMHeadModel(GPT2Config()).save_pretrained(checkpoint)
        # llama.cpp wants a merge at least.
        vocabulary = {name: index for index, name in enumerate(["t", "0", *(f"t{index}" for index in range(50255))])}
        names = Tokenizer(models.BPE(vocabulary, [("t", "0")]))
        names.pre_tokenizer = ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=names, **SPECIAL_TOKENS).save_pretrained(checkpoint)
        write(opened(checkpoint), Path(directory, "model.gguf"), precision)
        options = xllamacpp.CommonParams()
        options.model.path, options.verbosity = f"{directory}/model.gguf", -1
        options.n_parallel, options.n_ctx = len(prompt), 1024 * len(prompt)
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = thread_count()
        server = xllamacpp.Server(options)
        size = Path(directory, "model.gguf").stat().st_size
    request = {"n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def complete(row):
        content = json.dumps({"prompt": row.tolist(), **request}).encode()
        header = {"Content-Type": "application/json"}
        call = urllib.request.Request(f"{server.listening_address}/completion", content, header)
        with urllib.request.urlopen(call) as answer:
            assert json.load(answer)["tokens_predicted"] == count

    def generate():
        with ThreadPoolExecutor(len(prompt)) as rows:
            list(rows.map(complete, prompt))

    return Work(generate, size)


def litert_generator(prompt, count, quantize, with_cache):
    """As `generator`, of `algpt2` with random weights in LiteRT, one row of the batch after the other."""
    from ai_edge_litert.interpreter import Interpreter

    from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
    from algpt2_tf.export import export_litert

    config = ALGPT2Config.from_preset("algpt2")
    with tempfile.TemporaryDirectory() as directory:
        export_litert(TFALGPT2LMHeadModel(TFALGPT2Backbone(config)), f"{directory}/model.tflite", quantize)
        content = Path(directory, "model.tflite").read_bytes()
    interpreter = Interpreter(model_content=content, num_threads=thread_count())
    whole, prefill, decode = map(interpreter.get_signature_runner, ("serving_default", "prefill", "decode"))
    entries = [f"kv_cache_{kind}_{depth}" for depth in range(config.n_layer) for kind in "kv"]
    shape = (1, config.n_head, config.n_positions, config.n_embd // config.n_head)

    def whole_text(ids):
        for _ in range(count):
            token_ids = np.array([ids], "int32")
            logits = whole(token_ids=token_ids, padding_mask=np.ones_like(token_ids))["logits"]
            ids.append(int(logits[0, -1].argmax()))

    def from_cache(ids):
        cache = {name: np.zeros(shape, "float32") for name in entries}
        cache = prefill(tokens=np.array([ids], "int32"), input_pos=np.arange(len(ids), dtype="int32"), **cache)
        for place in range(len(ids) - 1, len(ids) - 1 + count):
            cache = decode(tokens=np.array([ids[-1:]], "int32"), input_pos=np.array([place], "int32"), **cache)
            ids.append(int(cache.pop("logits")[0, 0].argmax()))

    continue_row = from_cache if with_cache else whole_text
    return Work(lambda: [continue_row(row.tolist()) for row in prompt], len(content))


def thread_count():
    """int: the threads that a benchmark may use, as OMP_NUM_THREADS says, or all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())
