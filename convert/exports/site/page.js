// The page: what one types and presses, and the four states loading, ready, running and error.

const at = (id) => document.getElementById(id);
const text = at("text"), form = at("form");
let worker, before, isReady = false;

const messages = {
  progress({ loaded, total }) {
    at("progress").value = Math.min(1, loaded / total);
    // The last megabytes are there before the model is.
    show("loading", loaded < total ? `Loading: ${megabytes(loaded)} of ${megabytes(total)}` : "Starting the model");
  },
  ready() {
    isReady = true;
    show("ready", "Ready");
  },
  text({ added, count, speed }) {
    append(added);
    at("status").textContent = `Running: ${measured(count, speed)}`;
  },
  context({ kept, context }) {
    at("notice").textContent =
      `The text is longer than the ${context} tokens that the model reads at once: it goes on from the last ${kept}.`;
    at("notice").hidden = false;
  },
  done({ added, count, speed, ended }) {
    append(added);
    show("ready", `${ended ? "The text ended" : "Ready"}: ${measured(count, speed)}`);
  },
  error({ during, message }) {
    isReady = during !== "load";
    show("error", message);
  },
};

start();

async function start() {
  try {
    const response = await fetch("model.json");
    if (!response.ok) throw new Error(`model.json is not there (HTTP ${response.status})`);
    describe(await response.json());
  } catch (error) {
    return show("error", error.message);
  }
  load();
}

function load() {
  worker?.terminate();
  show("loading", "Loading");
  worker = new Worker("model.js", { type: "module" });
  worker.onmessage = ({ data }) => messages[data.type](data);
  worker.onerror = (event) => messages.error({ during: "load", message: event.message ?? "The model cannot be started." });
  worker.postMessage({ type: "load" });
}

function describe({ name, dtype, bytes, facts, card }) {
  const precision = { fp32: "float32", q8: "int8", q4: "4 bits" }[dtype];
  document.title = `${name}: continue a text`;
  at("name").textContent = name;
  const rows = { ...facts, Download: `${megabytes(bytes)}, weights in ${precision}` };
  const pairs = Object.entries(rows).flatMap(([term, value]) => [element("dt", term), element("dd", value)]);
  at("facts").replaceChildren(...pairs);
  at("card").hidden = !card;
  if (card) at("card").firstElementChild.href = card;
}

function show(state, status) {
  const isRunning = state === "running";
  // A button that goes away takes the focus with it.
  const hadFocus = [at("run"), at("stop")].includes(document.activeElement);
  document.body.dataset.state = state;
  at("status").textContent = status;
  at("run").hidden = isRunning;
  at("stop").hidden = !isRunning;
  at("retry").hidden = state !== "error" || isReady;
  at("run").disabled = !isReady;
  at("undo").disabled = isRunning || before === undefined;
  text.readOnly = isRunning;
  text.setAttribute("aria-busy", isRunning);
  if (hadFocus) (isRunning ? at("stop") : at("run")).focus();
}

function run() {
  if (!isReady || document.body.dataset.state === "running") return;
  if (!text.value) {
    show("error", "Type some text first.");
    return text.focus();
  }
  before = text.value;
  at("notice").hidden = true;
  show("running", "Reading the text");
  worker.postMessage({
    type: "continue",
    text: text.value,
    temperature: Number(at("temperature").value),
    topP: Number(at("top-p").value),
    length: Number(at("length").value),
  });
}

function stop() {
  if (document.body.dataset.state === "running") worker.postMessage({ type: "stop" });
}

function append(added) {
  if (!added) return;
  // Whoever has scrolled up to read is left there.
  const follows = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
  text.value += added;
  if (follows) text.scrollTop = text.scrollHeight;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("stop").addEventListener("click", stop);
at("retry").addEventListener("click", start);
at("undo").addEventListener("click", () => {
  text.value = before;
  before = undefined;
  at("notice").hidden = true;
  show("ready", "Ready");
  text.focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
for (const name of ["temperature", "top-p", "length"]) {
  const input = at(name);
  const echo = () => (at(`${name}-value`).textContent = name === "length" ? input.value : Number(input.value).toFixed(2));
  input.addEventListener("input", echo);
  echo();
}

function element(tag, content) {
  return Object.assign(document.createElement(tag), { textContent: content });
}

function measured(count, speed) {
  const tokens = `${count} ${count === 1 ? "token" : "tokens"}`;
  return speed ? `${tokens}, ${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tokens/s` : tokens;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}
