// Plays the frames that have arrived so far, in a loop, on a canvas. The value of the component is
// null, or {run, fps, strips: [{count, source}]}; a strip holds `count` frames one below the other.
const box = element.querySelector(".pf-preview");
const empty = element.querySelector(".pf-empty");
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let run = null;
let pictures = [];
let frames = [];
let position = 0;
let timer = null;

function draw(frame) {
  const { picture, top, height } = frame;
  if (canvas.width !== picture.naturalWidth || canvas.height !== height) {
    canvas.width = picture.naturalWidth;
    canvas.height = height;
  }
  context.drawImage(picture, 0, top, canvas.width, height, 0, 0, canvas.width, height);
}

function tick() {
  if (!frames.length || box.hidden) return;
  position = still.matches ? frames.length - 1 : (position + 1) % frames.length;
  draw(frames[position]);
}

function arrange() {
  // Only what has arrived without a gap is shown.
  frames = [];
  for (const entry of pictures) {
    if (!entry || !entry.ready) break;
    const height = entry.picture.naturalHeight / entry.count;
    for (let i = 0; i < entry.count; i++) {
      frames.push({ picture: entry.picture, top: i * height, height });
    }
  }
  box.dataset.frames = frames.length;
  if (frames.length && box.hidden === false && !still.matches && position >= frames.length) position = 0;
}

function update() {
  const value = props.value;
  const shown = Boolean(value && value.strips && value.strips.length);
  if (!value || value.run !== run) {
    run = value ? value.run : null;
    pictures = [];
    frames = [];
    position = 0;
    box.dataset.frames = 0;
    clearInterval(timer);
    timer = value && value.fps ? setInterval(tick, 1000 / value.fps) : null;
  }
  box.hidden = !shown;
  empty.hidden = shown || Boolean(value && value.covered);
  if (!shown) return;
  value.strips.forEach((strip, index) => {
    if (pictures[index]) return;
    const entry = { picture: new Image(), count: strip.count, ready: false };
    pictures[index] = entry;
    entry.picture.onload = () => {
      entry.ready = true;
      arrange();
    };
    entry.picture.src = strip.source;
  });
}

watch("value", update);
update();
