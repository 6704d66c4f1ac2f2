"""The ONNX graph of a language model with a key/value cache, written from canonical weights.

It has the inputs and outputs that optimum and transformers.js expect of a GPT-2, and operators of ONNX Runtime (domain
`com.microsoft`): attention that appends to its cache in place, and products by weights of 4 or 8 bits. The weights of a
shared block stand in it once.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from algpt2.checkpoints.weights import fold_residual_multiplier, names_at_depth, parameter_count
from algpt2.errors import InputError
from algpt2.onnx import LOGITS_KEPT
from algpt2.onnx.quantization import BLOCK_SIZES, balance, fills_blocks, quantize_blocks

CONTRIB = "com.microsoft"
# The bits of a weight.
PRECISIONS = {"float32": 32, "int8": 8, "q4": 4}
HEAD_WIDTH = 8
# ONNX opset 20 is the first with Gelu; onnxruntime 1.20 reads both.
OPSET, IR_VERSION = 20, 10
# The products of quantized weights round their other factor to 8 bits as well.
ACCURACY_LEVEL = 4
# The most bytes of an ONNX file.
FILE_LIMIT = 2**31
# What is added to the scores of padding.
MASKED = np.float32(-1e9)
ACTIVATIONS = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("FastGelu", {"domain": CONTRIB}),
    "gelu_pytorch_tanh": ("FastGelu", {"domain": CONTRIB}),
    "quick_gelu": ("QuickGelu", {"domain": CONTRIB, "alpha": 1.702}),
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "silu": ("QuickGelu", {"domain": CONTRIB, "alpha": 1.0}),
    "swish": ("QuickGelu", {"domain": CONTRIB, "alpha": 1.0}),
    "tanh": ("Tanh", {}),
}


def language_model(config, weights, precision="float32", unpack=False):
    """The ONNX model of a configuration and its weights.

    Its inputs are `input_ids` and `position_ids`, int64 (batch, length), `attention_mask`, int64 (batch, past +
    length), 0 for padding, and for each depth `past_key_values.DEPTH.key` and `.value`, float32 (batch, n_head, past,
    H / n_head); one that may be left out is `num_logits_to_keep`, int64 (). Its outputs are `logits`, float32 (batch,
    length, V), of so many of the last tokens, or of all if that is 0, and `present.DEPTH.key` and `.value`. A batch of
    several texts goes on from a past by one token at a time.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical. Other
            heads are left out.
        precision: str, one of `PRECISIONS`. In `int8` and `q4` matrices are quantized by blocks, what a depth adds to
            them by 8 bits in both, or float16; the position embeddings, biases and norms stay float32.
        unpack: bool. Whether quantized matrices become float32 when the model is loaded: where products by them are
            slow, as in browsers, only the file is to be small.

    Returns:
        `onnx.ModelProto`.

    Raises:
        InputError: if ONNX Runtime has no attention for the width of a head, or one file cannot hold the weights.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> from algpt2.checkpoints.weights import weight_shapes
        >>> config = ALGPT2Config.from_preset("algpt2-tiny")
        >>> weights = {name: np.zeros(shape) for name, shape in weight_shapes(config).items()}
        >>> len(language_model(config, weights, "q4").graph.input)
        12
    """
    head_width = config.n_embd // config.n_head
    if head_width % HEAD_WIDTH:
        raise InputError(
            f"a head is n_embd / n_head = {head_width} wide; ONNX Runtime's attention takes multiples of {HEAD_WIDTH}"
        )
    bits = PRECISIONS[precision]
    # What a depth adds has 8 bits at least, or 16.
    size = parameter_count(config) * bits + parameter_count(config, "depths") * max(0, 16 - bits)
    if size // 8 >= FILE_LIMIT:
        raise InputError(f"in {precision} the weights are more than the 2 GB of a file; give --quantize")
    config, weights = fold_residual_multiplier(config, weights)
    weights = {name: np.asarray(weight, "float32") for name, weight in weights.items()}
    if bits == 8:
        # In 4 bits, whose blocks are shorter, it makes some models worse, that of the published scheme among them.
        weights = balance(config, weights)
    graph = _Graph(weights, bits, unpack)
    total, last, bias = _past_and_mask(graph)
    past_shape = _past_shape(graph, config)
    head = "transformer.wte" if config.tie_word_embeddings else "lm_head"

    x = graph.op("Add", graph.embed("transformer.wte", "input_ids"), graph.gather("transformer.wpe", "position_ids"))
    if config.is_factorized:
        x = graph.linear(x, "transformer.project_in")
    depths = [names_at_depth(config, depth) for depth in range(config.n_layer)]
    norms = [*(names["ln_1.weight"].removesuffix(".weight") for names in depths), "transformer.ln_f"]
    y = graph.op("LayerNormalization", x, *graph.norm(norms[0]), epsilon=config.layer_norm_epsilon)
    for depth, names in enumerate(depths):
        present = f"present.{depth}"
        key, value = (
            graph.op("Reshape", f"past_key_values.{depth}.{kind}", past_shape, allowzero=1) for kind in ("key", "value")
        )
        qkv = graph.product(y, names, "attn.c_attn")
        y, *_ = graph.node(
            "GroupQueryAttention",
            # One input holds queries, keys and values; the empty ones are of rotary positions.
            [qkv, "", "", key, value, last, total, "", "", "", bias],
            [f"attention.{depth}", f"{present}.key", f"{present}.value"],
            domain=CONTRIB,
            num_heads=config.n_head,
            kv_num_heads=config.n_head,
        )
        ln_2 = names["ln_2.weight"].removesuffix(".weight")
        x, y = graph.add_and_norm(x, graph.product(y, names, "attn.c_proj"), ln_2, config)
        operator, options = ACTIVATIONS[config.activation_function]
        y = graph.op(operator, graph.product(y, names, "mlp.c_fc"), **options)
        x, y = graph.add_and_norm(x, graph.product(y, names, "mlp.c_proj"), norms[depth + 1], config)
    y = graph.last(y, LOGITS_KEPT)
    if config.tie_projections:
        y = graph.linear(y, "transformer.project_out", graph.weights["transformer.project_in.weight"].T)
    elif config.is_factorized:
        y = graph.linear(y, "transformer.project_out")
    graph.multiply_rows(y, head, "logits")
    return _model(config, graph)


class _Graph:
    """Nodes and stored tensors as they are added; the tensors are named as the canonical weights."""

    def __init__(self, weights, bits, unpack):
        self.weights, self.bits, self.unpack = weights, bits, unpack
        self.nodes, self.stored, self.whole = [], {}, {}

    def node(self, operator, inputs, outputs, domain="", **attributes):
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, domain=domain, **attributes))
        return outputs

    def op(self, operator, *inputs, **attributes):
        return self.node(operator, list(inputs), [f"value.{len(self.nodes)}"], **attributes)[0]

    def store(self, name, array):
        if name not in self.stored:
            self.stored[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def number(self, value, dtype="int64"):
        array = np.array(value, dtype)
        return self.store(f"constant.{dtype}.{array.tolist()}", array)

    def weight(self, name):
        return self.store(name, self.weights[name])

    def norm(self, name):
        return self.weight(f"{name}.weight"), self.weight(f"{name}.bias")

    def last(self, x, name):
        """The last tokens of x (batch, length, width), as many as an input of a name says; 0 means all."""
        self.stored[name] = numpy_helper.from_array(np.array(0), name)
        start = self.op("Reshape", self.op("Neg", name), self.number([1]))
        return self.op("Slice", x, start, self.number([np.iinfo("int64").max]), self.number([1]))

    def gather(self, name, ids):
        return self.op("Gather", self.weight(f"{name}.weight"), ids)

    def quantized(self, name, matrix, bits):
        if f"{name}.levels" not in self.stored:
            levels, scales = quantize_blocks(matrix, bits)
            self.store(f"{name}.levels", levels)
            self.store(f"{name}.scales", scales)
        return f"{name}.levels", f"{name}.scales"

    def unpacked(self, levels, scales, columns, bits, axes=1):
        """The float32 rows of quantized ones, with the shape (axes of the rows, blocks, bytes)."""
        # In plain operators, which browsers have, and which have constants computed when a model is loaded.
        levels = self.op("Cast", levels, to=TensorProto.FLOAT)
        if bits == 4:
            upper = self.op("Floor", self.op("Mul", levels, self.number(1 / 16, "float32")))
            lower = self.op("Sub", levels, self.op("Mul", upper, self.number(16, "float32")))
            last = self.number([-1])
            levels = self.op("Concat", *(self.op("Unsqueeze", half, last) for half in (lower, upper)), axis=-1)
            levels = self.op("Reshape", levels, self.number([0] * axes + [-1, BLOCK_SIZES[bits]]))
        levels = self.op("Sub", levels, self.number(1 << (bits - 1), "float32"))
        rows = self.op("Mul", levels, self.op("Unsqueeze", scales, self.number([-1])))
        rows = self.op("Reshape", rows, self.number([0] * axes + [-1]))
        # The last block of a row may be filled up.
        return self.op("Slice", rows, self.number([0]), self.number([columns]), self.number([-1]))

    def unpacked_matrix(self, name, matrix, bits):
        """A quantized matrix (rows, columns) in float32, computed once."""
        if name not in self.whole:
            self.whole[name] = self.unpacked(*self.quantized(name, matrix, bits), matrix.shape[1], bits)
        return self.whole[name]

    def embed(self, name, ids):
        """The rows of an embedding matrix (V, E)."""
        if self.bits == 32:
            return self.gather(name, ids)
        matrix = self.weights[f"{name}.weight"]
        if self.unpack:
            return self.op("Gather", self.unpacked_matrix(name, matrix, self.bits), ids)
        levels, scales = (self.op("Gather", stored, ids) for stored in self.quantized(name, matrix, self.bits))
        return self.unpacked(levels, scales, matrix.shape[1], self.bits, axes=2)

    def product(self, x, names, product):
        """A product of a block, with what its depth adds to it; `names` are those of `names_at_depth`."""
        y = self.linear(x, names[f"{product}.weight"].removesuffix(".weight"), bias=names[f"{product}.bias"])
        if f"{product}.down" not in names:
            return y
        for part in ("down", "up"):
            name = names[f"{product}.{part}"]
            x = self.multiply(x, name, bits=self.addition_bits(self.weights[name].shape[1]))
        return self.op("Add", y, x)

    def addition_bits(self, columns):
        """The bits of a matrix with rows of so many columns in what a depth adds to a product."""
        # In 4 bits the additions of a compressed GPT-2 cost a fifth of perplexity, in 8 nothing. Rows as short as the
        # rank would fill a small part of a block.
        if self.bits == 32 or fills_blocks(columns, 8):
            return max(self.bits, 8)
        return 16

    def linear(self, x, name, matrix=None, bias=None):
        """The product with a matrix (out, in), by default the weight of the layer, plus the layer's bias."""
        matrix = self.weights[f"{name}.weight"] if matrix is None else matrix
        return self.multiply(x, f"{name}.weight", matrix, bias or f"{name}.bias")

    def multiply(self, x, name, matrix=None, bias=None, bits=None):
        """The product with a matrix (out, in), by default the one of this name, plus the bias of a name.

        The matrix is stored in `bits`, by default those of the graph; 16 and 32 are floating point.
        """
        matrix, bits = self.weights[name] if matrix is None else matrix, bits or self.bits
        layer = name.removesuffix(".weight")
        if bits < 16 and not self.unpack:
            more = ["", "", self.weight(bias)] if bias else []
            return self._multiply_quantized(x, layer, matrix, bits, f"value.{len(self.nodes)}", more)
        if bits == 32:
            transposed = self.store(name, matrix.T)
        elif bits == 16:
            # Additions may be far from 1, as their two factors may share their size in any way.
            scale = np.abs(matrix).max() or np.float32(1)
            half = self.op("Cast", self.store(name, (matrix.T / scale).astype("float16")), to=TensorProto.FLOAT)
            transposed = self.op("Mul", half, self.number(scale, "float32"))
        else:
            transposed = self.op("Transpose", self.unpacked_matrix(layer, matrix, bits), perm=[1, 0])
        y = self.op("MatMul", x, transposed)
        return self.op("Add", y, self.weight(bias)) if bias else y

    def multiply_rows(self, x, name, output):
        """The products with the rows of a matrix (V, E), which may be an embedding too."""
        matrix = self.weights[f"{name}.weight"]
        if self.bits != 32 and not self.unpack:
            return self._multiply_quantized(x, name, matrix, self.bits, output, [])
        rows = self.weight(f"{name}.weight") if self.bits == 32 else self.unpacked_matrix(name, matrix, self.bits)
        flat = self.op("Reshape", x, self.number([-1, matrix.shape[1]]))
        product = self.op("Gemm", flat, rows, transB=1)
        shape = self.op("Concat", self.op("Shape", x, start=0, end=2), self.number([len(matrix)]), axis=0)
        return self.node("Reshape", [product, shape], [output])[0]

    def _multiply_quantized(self, x, name, matrix, bits, output, more):
        rows, columns = matrix.shape
        return self.node(
            "MatMulNBits",
            [x, *self.quantized(name, matrix, bits), *more],
            [output],
            domain=CONTRIB,
            N=rows,
            K=columns,
            bits=bits,
            block_size=BLOCK_SIZES[bits],
            accuracy_level=ACCURACY_LEVEL,
        )[0]

    def add_and_norm(self, x, change, name, config):
        """The sum of two values, and its layer normalization."""
        norm, _, _, total = self.node(
            "SkipLayerNormalization",
            [x, change, *self.norm(name)],
            [f"value.{len(self.nodes)}.norm", "", "", f"value.{len(self.nodes)}.sum"],
            domain=CONTRIB,
            epsilon=config.layer_norm_epsilon,
        )
        return total, norm


def _past_and_mask(graph):
    """The length with the past, that less one for each text, and what is added to the scores of attention."""
    total = graph.op("Gather", graph.op("Shape", "attention_mask"), graph.number(1))
    total = graph.op("Cast", total, to=TensorProto.INT32)
    batch = graph.op("Shape", "input_ids", start=0, end=1)
    last = graph.op("Expand", graph.op("Sub", total, graph.number(1, "int32")), batch)
    padding = graph.op("Sub", graph.number(1), "attention_mask")
    bias = graph.op("Mul", graph.op("Cast", padding, to=TensorProto.FLOAT), graph.number(MASKED, "float32"))
    length = graph.op("Shape", "input_ids", start=1, end=2)
    shape = graph.op("Concat", graph.number([1, 1]), length, graph.number([1]), axis=0)
    return total, last, graph.op("Expand", graph.op("Unsqueeze", bias, graph.number([1, 2])), shape)


def _past_shape(graph, config):
    """The shape of keys and values. transformers.js begins with a past for no texts, which attention would refuse."""
    batch = graph.op("Shape", "input_ids", start=0, end=1)
    length = graph.op("Shape", "past_key_values.0.key", start=2, end=3)
    heads, width = graph.number([config.n_head]), graph.number([config.n_embd // config.n_head])
    return graph.op("Concat", batch, heads, length, width, axis=0)


def _model(config, graph):
    def ids(name, length):
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])

    def states(name, length):
        shape = ["batch", config.n_head, length, config.n_embd // config.n_head]
        kinds = [(depth, kind) for depth in range(config.n_layer) for kind in ("key", "value")]
        return [
            helper.make_tensor_value_info(f"{name}.{depth}.{kind}", TensorProto.FLOAT, shape) for depth, kind in kinds
        ]

    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "kept", config.vocab_size])
    inputs = [ids("input_ids", "length"), ids("attention_mask", "total"), ids("position_ids", "length")]
    # What is stored under the name of an input is its default.
    kept = helper.make_tensor_value_info(LOGITS_KEPT, TensorProto.INT64, [])
    content = helper.make_graph(
        graph.nodes,
        config.model_type,
        [*inputs, *states("past_key_values", "past"), kept],
        [logits, *states("present", "total")],
        list(graph.stored.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(content, opset_imports=opsets, ir_version=IR_VERSION, producer_name=config.model_type)
    onnx.checker.check_model(model)
    return model
