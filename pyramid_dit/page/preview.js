// Plays the frames that have arrived so far, in a loop, on a canvas. The value of the component is
// null, or {run, fps, strips: [{count, source}], covered}; a strip holds `count` frames one below
// the other, and once the preview is covered the finished video is shown in its place.
const box = element.querySelector(".pf-preview");
const empty = element.querySelector(".pf-empty");
const canvas = element.querySelector("canvas");
const context = canvas.getContext("2d");
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let run = null;
let pictures = [];
let complete = 0;
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
  // Only what has arrived without a gap is shown, one strip after the other.
  for (; pictures[complete]?.ready; complete++) {
    const { picture, count } = pictures[complete];
    const height = picture.naturalHeight / count;
    for (let i = 0; i < count; i++) frames.push({ picture, top: i * height, height });
    box.dataset.frames = frames.length;
  }
}

function begin(newRun, fps) {
  run = newRun;
  pictures = [];
  complete = 0;
  frames = [];
  position = 0;
  box.dataset.frames = 0;
  clearInterval(timer);
  timer = fps ? setInterval(tick, 1000 / fps) : null;
}

function update() {
  const value = props.value || {};
  const strips = value.strips || [];
  const covered = Boolean(value.covered);
  if ((value.run || null) !== run) begin(value.run || null, value.fps);
  if (covered) clearInterval(timer);
  box.hidden = covered || !strips.length;
  empty.hidden = covered || strips.length > 0;
  strips.slice(pictures.length).forEach(({ count, source }) => {
    const entry = { picture: new Image(), count, ready: false };
    pictures.push(entry);
    entry.picture.onload = () => {
      entry.ready = true;
      arrange();
    };
    entry.picture.src = source;
  });
}

watch("value", update);
update();
