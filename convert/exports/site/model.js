// The model, in a worker, so that the page never waits for it.
// In: {type: "load"}, {type: "continue", text, temperature, topP, length}, {type: "stop"}.
// Out: {type: "progress", loaded, total}, "ready", "text", "context", "done", "error".

const base = new URL(".", self.location.href);
let described, library, tokenizer, model, stopping;

const handlers = { load, continue: continueText, stop: () => stopping?.interrupt() };

self.onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    self.postMessage({ type: "error", during: data.type, message: error?.message ?? String(error) });
  }
};

async function load() {
  described = JSON.parse(new TextDecoder().decode(await fetched("model.json")));
  const { transformers, runtime, wasm } = described.libraries;
  const shares = { wasm: 0, model: 0 };
  let wasmBytes = 0;
  const report = (share, loaded, total) => {
    shares[share] = loaded;
    if (share === "wasm") wasmBytes = total || loaded;
    self.postMessage({ type: "progress", loaded: shares.wasm + shares.model, total: wasmBytes + described.bytes });
  };
  const [imported, wasmBinary] = await Promise.all([
    import(absolute(transformers)),
    fetched(wasm, (loaded, total) => report("wasm", loaded, total)),
  ]);
  library = imported;
  const { env, AutoTokenizer, AutoModelForCausalLM } = library;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = base.pathname;
  // The browser's own cache asks the server whether a file has changed; that of transformers.js would not.
  env.useBrowserCache = false;
  env.useWasmCache = false;
  env.backends.onnx.wasm.wasmPaths = { mjs: absolute(runtime), wasm: absolute(wasm) };
  env.backends.onnx.wasm.wasmBinary = wasmBinary;
  tokenizer = await AutoTokenizer.from_pretrained("model");
  model = await AutoModelForCausalLM.from_pretrained("model", {
    dtype: described.dtype,
    device: "wasm",
    progress_callback: ({ status, file, loaded }) =>
      status === "progress" && file.endsWith(".onnx") && report("model", loaded),
  });
  // `generate` awaits nothing but the model, which would keep the worker from hearing "stop".
  const forward = model.forward.bind(model);
  model.forward = async (inputs) => {
    await breath();
    return forward(inputs);
  };
  self.postMessage({ type: "ready" });
}

async function continueText({ text, temperature, topP, length }) {
  const { Tensor, InterruptableStoppingCriteria } = library;
  const context = described.context;
  const ends = [model.generation_config?.eos_token_id ?? model.config.eos_token_id].flat().map(Number);
  let ids = [...described.start, ...tokenizer.encode(text, { add_special_tokens: false })];
  const stream = new TextStream(ids);
  let count = 0, first, last, added = "", told = 0;
  if (!ids.length) throw new Error("Type some text first.");
  // The first token waited for the whole text before it.
  const speed = () => (count > 1 ? (1000 * (count - 1)) / (last - first) : null);
  stopping = new InterruptableStoppingCriteria();
  while (count < length && !stopping.interrupted && !ends.includes(ids.at(-1))) {
    if (ids.length >= context) {
      ids = ids.slice(-(context - Math.floor(context / 2)));
      self.postMessage({ type: "context", kept: ids.length, context });
    }
    await model.generate({
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
      max_new_tokens: Math.min(context - ids.length, length - count),
      // The choice is that of `sampler`, which leaves one token.
      do_sample: false,
      logits_processor: sampler(temperature, topP),
      stopping_criteria: stopping,
      streamer: streamer((id) => {
        ids.push(id);
        count += 1;
        last = performance.now();
        first ??= last;
        if (!ends.includes(id)) added += stream.put(id);
        // A small model is faster than the page can show each token.
        if (last - told < 40) return;
        self.postMessage({ type: "text", added, count, speed: speed() });
        told = last;
        added = "";
      }),
    });
  }
  self.postMessage({
    type: "done", added: added + stream.end(), count, speed: speed(), ended: ends.includes(ids.at(-1)),
  });
}

function streamer(take) {
  let isPrompt = true;
  const result = new library.BaseStreamer();
  result.put = ([ids]) => {
    if (!isPrompt) ids.forEach((id) => take(Number(id)));
    isPrompt = false;
  };
  result.end = () => {};
  return result;
}

// transformers.js knows no top-p.
function sampler(temperature, topP) {
  const choose = (scores) => {
    const best = scores.reduce((best, score, id) => (score > scores[best] ? id : best), 0);
    if (!temperature) return best;
    const weights = Float64Array.from(scores, (score) => Math.exp((score - scores[best]) / temperature));
    const ids = likeliest(weights, topP);
    let drawn = Math.random() * massOf(ids, weights);
    return ids.find((id) => (drawn -= weights[id]) < 0) ?? best;
  };
  const leaveOne = (ids, logits) => {
    const chosen = choose(logits.data);
    logits.data.fill(-Infinity);
    logits.data[chosen] = 0;
    return logits;
  };
  return [leaveOne];
}

// The fewest of the likeliest tokens that have the probability `topP` together.
function likeliest(weights, topP) {
  const all = Uint32Array.from(weights.keys());
  if (topP >= 1) return all;
  const enough = topP * massOf(all, weights);
  // Sorting some of them is many times as fast, and nearly always they are enough.
  let ids = all.filter((id) => weights[id] > 1e-4);
  if (massOf(ids, weights) < enough) ids = all;
  ids.sort((a, b) => weights[b] - weights[a]);
  let kept = 0;
  for (let mass = 0; kept < ids.length && mass < enough; kept += 1) mass += weights[ids[kept]];
  return ids.subarray(0, kept);
}

function massOf(ids, weights) {
  return ids.reduce((sum, id) => sum + weights[id], 0);
}

// The text of tokens as they come; a character that spans tokens waits for the last of them.
class TextStream {
  // What comes before stays, since the text of a token may depend on it.
  constructor(ids) {
    this.ids = [...ids];
    this.written = ids.length;
  }

  put(id) {
    this.ids.push(id);
    const before = this.decoded(this.ids.slice(0, this.written));
    const text = this.decoded(this.ids);
    if (text.endsWith("\ufffd")) return "";
    this.ids = this.ids.slice(this.written);
    this.written = this.ids.length;
    return text.slice(before.length);
  }

  end() {
    return this.decoded(this.ids).slice(this.decoded(this.ids.slice(0, this.written)).length);
  }

  decoded(ids) {
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    return ids.length ? tokenizer.decode(ids, options) : "";
  }
}

async function fetched(name, report = () => {}) {
  const response = await fetch(absolute(name));
  if (!response.ok) throw new Error(`${name} is not there (HTTP ${response.status})`);
  // Of a compressed file the server tells the compressed size, while the reader counts the whole one.
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    report(loaded, total);
  }
  return new Blob(parts).arrayBuffer();
}

function absolute(name) {
  return new URL(name, base).href;
}

function breath() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
