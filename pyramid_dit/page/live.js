// Plays a live video as its frames arrive, and sends new words. The value of the component is null,
// or {address, fps, prompt, sentence | words}: where to listen, the rate, the first prompt, and what
// to offer by a click, either the one sentence that the model knows, texts and choices, or words.
const box = element.querySelector(".pf-live");
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const status = element.querySelector(".pf-live-status");
const form = element.querySelector("form");
const input = element.querySelector("input");
const offers = element.querySelector(".pf-live-words");
const delay = element.querySelector(".pf-live-delay");
const MOST_WAITING = 32; // frames; of a page that was not looked at, the older ones are left out

let source = null;
let address = null;
let prompt = "";
let said = 0; // number of the last words
let sent = new Map(); // when which words were sent
let arrivals = Promise.resolve();
let waiting = []; // frames that are to be drawn
let fps = 24;
let pace = 0; // milliseconds between two frames as they are made
let arrived = 0;
let due = 0;

function draw({ picture, top, height, heard }) {
  if (canvas.width !== picture.naturalWidth || canvas.height !== height) {
    canvas.width = picture.naturalWidth;
    canvas.height = height;
  }
  context.drawImage(picture, 0, top, canvas.width, height, 0, 0, canvas.width, height);
  box.dataset.frames = Number(box.dataset.frames) + 1;
  if (sent.has(heard)) {
    const seconds = (performance.now() - sent.get(heard)) / 1000;
    for (const number of sent.keys()) if (number <= heard) sent.delete(number);
    box.dataset.delay = seconds;
    box.dataset.unit = (pace * 8) / 1000; // seconds that a unit takes
    delay.textContent = `New words were seen after ${seconds.toFixed(1)} s.`;
  }
}

function tick(now) {
  if (source === null && !waiting.length) return;
  if (waiting.length && now >= due) {
    draw(waiting.shift());
    // No faster than the video, no faster than it is made; a little faster where much has come.
    const interval = Math.max(1000 / fps, pace) * (waiting.length > 10 ? 0.8 : 1);
    due = Math.max(due + interval, now - interval);
  }
  requestAnimationFrame(tick);
}

async function add({ source: data, count, heard }) {
  const picture = new Image();
  picture.src = data;
  await picture.decode();
  const now = performance.now();
  if (arrived && count > 1) {
    const since = Math.min((now - arrived) / count, 5000);
    pace = pace ? 0.7 * pace + 0.3 * since : since;
  }
  arrived = now;
  const height = picture.naturalHeight / count;
  for (let i = 0; i < count; i++) waiting.push({ picture, top: i * height, height, heard });
  waiting.splice(0, waiting.length - MOST_WAITING);
}

function listen() {
  source = new EventSource(address);
  source.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.source) arrivals = arrivals.then(() => add(event)).catch(console.error);
    if (event.words) {
      status.textContent = event.words;
      box.dataset.state = event.state;
    }
    if (event.over) end();
  };
  source.onerror = () => {
    if (source === null || source.readyState !== EventSource.CLOSED) return;
    status.textContent = "The connection has ended, and the live video with it.";
    box.dataset.state = "stopped";
    end();
  };
}

function end() {
  source?.close();
  source = null;
  form.hidden = offers.hidden = true;
}

async function say(words) {
  if (source === null || !words.trim()) return;
  prompt = words.trim();
  const number = ++said;
  sent.set(number, performance.now());
  delay.textContent = `“${prompt}” …`;
  mark();
  const body = JSON.stringify({ number, prompt });
  const answer = await fetch(`${address}/say`, { method: "POST", body }).catch(() => null);
  if (answer?.ok) return;
  sent.delete(number);
  delay.textContent = answer ? await answer.text() : "The words could not be sent.";
}

// ---- words by a click ------------------------------------------------------------------------

const has = (text) => ` ${prompt} `.includes(` ${text} `);

function mark() {
  for (const button of offers.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(has(button.textContent)));
  }
}

function withChoice(sentence, name, text) {
  const chosen = (key, texts) => (key === name ? text : texts.find(has) || texts[0]);
  const words = sentence.map((part) => {
    if (typeof part === "string") return part;
    const [[key, texts]] = Object.entries(part);
    return chosen(key, texts);
  });
  return words.join(" ");
}

function offer({ sentence, words = [] }) {
  offers.replaceChildren();
  const choices = (sentence || []).filter((part) => typeof part !== "string");
  const groups = choices.map((part) => Object.entries(part)[0]);
  if (words.length) groups.push(["words", words]);
  for (const [name, texts] of groups) {
    const group = document.createElement("div");
    group.role = "group";
    group.ariaLabel = name;
    for (const text of texts) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.onclick = () => say(sentence ? withChoice(sentence, name, text) : `${prompt}, ${text}`);
      group.append(button);
    }
    offers.append(group);
  }
  mark();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  say(input.value);
  input.value = "";
});

function update() {
  const value = props.value || {};
  if ((value.address || null) === address) return;
  end();
  address = value.address || null;
  box.hidden = address === null;
  if (address === null) return;
  box.scrollIntoView({ block: "nearest" });
  ({ fps, prompt } = value);
  said = pace = arrived = due = 0;
  sent = new Map();
  waiting = [];
  box.dataset.frames = 0;
  delete box.dataset.delay;
  status.textContent = "Starting …";
  box.dataset.state = "wait";
  delay.textContent = "";
  form.hidden = offers.hidden = false;
  offer(value);
  listen();
  requestAnimationFrame(tick);
}

watch("value", update);
update();
