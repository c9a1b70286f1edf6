// The page: what is asked for, the text as it comes, and how it ended.

import { Tokens } from "./tokens.js";

const part = (id) => document.getElementById(id);
const form = part("form");
const tokens = new Tokens(part("tokens"), part("card"));
const ENDS = {
  length: "as long as asked for",
  context: "the model has no more positions",
  end: "the model ended it",
  stop: "a stop string came",
};

let running = null; // what aborts the text that is being made
let seed = null; // of the last text
let unsaid = ""; // text that has not been read out yet

// ---- what is asked for

async function introduce() {
  const about = await (await fetch("about")).json();
  document.title = about.name;
  part("name").textContent = about.name;
  part("about").textContent = `${about.file} on ${about.device}, ${about.way}; ${about.positions} positions`
    + about.stops.map((stop) => `; a text ends before ${JSON.stringify(stop)}`).join("");
  // What was typed meanwhile, or kept by the browser, stays.
  form.prompt.value ||= about.prompt;
  document.querySelector('[data-of="max_tokens"]').max = about.positions;
  for (const [name, value] of Object.entries(about.values)) form.elements[name].value ||= value;
  for (const slider of document.querySelectorAll("[data-of]")) slider.value = form.elements[slider.dataset.of].value;
}

form.addEventListener("input", ({ target }) => {
  if (target.dataset.of) form.elements[target.dataset.of].value = target.value;
  const slider = document.querySelector(`[data-of="${target.name}"]`);
  if (slider) slider.value = target.value;
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    start();
  } else if (event.key === "Escape") {
    tokens.hide();
    running?.abort();
  }
});

part("stop").addEventListener("click", () => running?.abort());

part("keep").addEventListener("click", () => {
  form.seed.value = seed;
  part("keep").hidden = true;
  form.seed.focus();
});

part("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(part("given").textContent + part("tokens").textContent);
  part("status").textContent = "Copied.";
});

// ---- the text

async function start() {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = Object.fromEntries(new FormData(form));
  begin(asked.prompt);
  try {
    const response = await fetch("text", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...asked, seed: asked.seed.trim() || null }),
      signal: mine.signal,
    });
    let ended = false;
    for await (const lines of messages(response.body)) {
      if (mine.signal.aborted) return;
      ended = take(lines) || ended;
    }
    if (!ended) fail("The connection ended before the text did. Is the server still there?");
  } catch (error) {
    if (running !== mine) return;
    if (mine.signal.aborted) status(`Stopped after ${tokens.count} tokens`);
    else fail("The server does not answer. Is it still there?");
  } finally {
    if (running === mine) end();
  }
}

/** What the server tells, as it arrives: arrays of messages. */
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const lines = (rest + read.value).split("\n");
    rest = lines.pop();
    yield lines.map((line) => JSON.parse(line));
  }
}

/** Show what has come; whether it was the end. */
function take(messages) {
  tokens.add(messages.filter(({ kind }) => kind === "token"));
  for (const message of messages) {
    if (message.kind === "waiting") status("Waiting for another text to end …");
    if (message.kind === "begun") {
      seed = message.seed;
      status("");
    }
    if (message.kind === "token") say(message.text);
    if (message.kind === "failed") fail(message.error);
    if (message.kind === "ended") {
      const speed = (message.tokens / Math.max(message.seconds, 1e-9)).toFixed(message.seconds < message.tokens / 10 ? 0 : 1);
      status(`${message.tokens} tokens, ${ENDS[message.why]}; ${speed} tokens/s, the first after ${message.first.toFixed(3)} s`);
    }
  }
  return ["ended", "failed"].includes(messages.at(-1)?.kind);
}

function begin(prompt) {
  tokens.clear();
  seed = null;
  unsaid = "";
  part("given").textContent = prompt;
  part("said").replaceChildren();
  part("error").hidden = true;
  part("keep").hidden = true;
  part("legend").hidden = false;
  part("stop").disabled = false;
  part("copy").disabled = true;
  part("tokens").ariaBusy = "true";
  status("…");
}

function end() {
  running = null;
  say("", true);
  part("stop").disabled = true;
  part("copy").disabled = !navigator.clipboard || !part("text").textContent;
  part("tokens").ariaBusy = "false";
  if (seed) {
    part("status").textContent += `; seed ${seed}`;
    part("keep").hidden = form.seed.value.trim() === seed;
  }
}

/** Let text be read out by whole sentences: by tokens, nobody could follow. */
function say(text, all = false) {
  unsaid += text;
  const length = all ? unsaid.length : unsaid.search(/[.!?\n][^.!?\n]*$/) + 1;
  if (!length) return;
  part("said").append(unsaid.slice(0, length));
  unsaid = unsaid.slice(length);
}

function status(text) {
  part("status").textContent = text;
}

function fail(text) {
  status("");
  part("error").textContent = text;
  part("error").hidden = false;
}

introduce();
