// The page's viewer: before and after in one canvas, zoomed, compared, painted on. While a knob moves, what it shows is
// mixed here from four decoded corners, so that dragging costs the server nothing; `settle` asks for the exact picture.
//
// From the server, props.value: {id, size: [W, H], before, after, corners: [4] or none yet, turn, at}, files with a url;
// turn is that of the settle which it answers; of a picture just opened, `at` has the strengths instead.
// To the server: settle {turn, mask}, mask a PNG as a data URL, empty where nothing is painted; choose.

const SETTLE_MS = 250; // a knob that rests this long has been let go
const STEPS = [0, 0.5, 1, 1.5]; // of both strengths in the sheet

const find = (name) => element.querySelector("." + name);
const canvas = find("picture"), pen = canvas.getContext("2d"), divider = find("divider"), sheet = find("sheet");
const state = find("state"), width = find("width");

let shown = null; // the value whose pictures are loaded
let before = null, after = null; // images; `after` is exact and belongs to the turn `exact`
let corners = null; // [4] pixels of the preview's size, as floats: base, by pix, by sem, by both
const [preview, mask, soft] = Array.from({ length: 3 }, () => document.createElement("canvas"));
let painted = false;
let knobs = { pix: 1, sem: 1, insidePix: 1, insideSem: 1, feather: 0 };
let turn = 0, exact = -1, timer = 0, loads = 0, asking = false;
let view = { zoom: 0, x: 0.5, y: 0.5 }; // screen pixels for each of the picture's, 0 fits; the point in the middle
let tool = "", hold = null;

// --- mixing ----------------------------------------------------------------------------------------------------------

function pixels(image) {
  const sketch = document.createElement("canvas");
  sketch.width = preview.width; sketch.height = preview.height;
  const ink = sketch.getContext("2d", { willReadFrequently: true });
  ink.drawImage(image, 0, 0, sketch.width, sketch.height);
  return ink.getImageData(0, 0, sketch.width, sketch.height).data;
}

function take(images) { // (0, 0), (1, 0), (0, 1), (1, 1) as what a mixture is a sum of
  const [none, pix, sem, both] = images.map(pixels);
  corners = [none, pix, sem, both].map((_, index) => {
    const plane = new Float32Array(none.length);
    for (let i = 0; i < plane.length; i++) {
      plane[i] = index === 0 ? none[i] : index === 1 ? pix[i] - none[i] : index === 2 ? sem[i] - none[i]
        : both[i] - pix[i] - sem[i] + none[i];
    }
    return plane;
  });
}

function mix(pix, sem, into, place) { // place: 0 to 255, where insidePix and insideSem rule instead
  const [none, byPix, bySem, byBoth] = corners, both = pix * sem;
  for (let i = 0; i < into.length; i += 4) {
    let p = pix, s = sem, b = both;
    if (place && place[i]) {
      const share = place[i] / 255;
      p += share * (knobs.insidePix - pix); s += share * (knobs.insideSem - sem); b = p * s;
    }
    for (let c = i; c < i + 3; c++) into[c] = none[c] + p * byPix[c] + s * bySem[c] + b * byBoth[c];
    into[i + 3] = 255;
  }
}

function feathered() { // the mask's levels, softened as far as the server will
  if (!painted) return null;
  const ink = soft.getContext("2d", { willReadFrequently: true });
  ink.filter = knobs.feather ? `blur(${(knobs.feather * preview.width) / shown.size[0]}px)` : "none";
  ink.fillStyle = "black"; ink.fillRect(0, 0, soft.width, soft.height);
  ink.drawImage(mask, 0, 0);
  ink.filter = "none";
  return ink.getImageData(0, 0, soft.width, soft.height).data;
}

function mixPreview() {
  if (!corners) return;
  const ink = preview.getContext("2d"), image = ink.createImageData(preview.width, preview.height);
  mix(knobs.pix, knobs.sem, image.data, feathered());
  ink.putImageData(image, 0, 0);
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function frame() { // where the picture lies on the canvas: [left, top, width, height], screen pixels
  const [W, H] = shown.size, ratio = window.devicePixelRatio || 1;
  const fit = Math.min(canvas.width / W, canvas.height / H), zoom = view.zoom ? view.zoom * ratio : fit;
  const w = W * zoom, h = H * zoom;
  const place = (room, size, middle) =>
    size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, room / 2 - middle * size));
  return [place(canvas.width, w, view.x), place(canvas.height, h, view.y), w, h];
}

function seen() { // the part of the canvas that the picture covers: [from, to], screen pixels
  const [left, , w] = frame();
  return [Math.max(left, 0), Math.min(left + w, canvas.width)];
}

function cutAt() { // where before ends and after begins, in the part that is seen
  const [from, to] = seen();
  return from + ((to - from) * divider.value) / 100;
}

function draw() {
  if (!shown) return;
  const ratio = window.devicePixelRatio || 1, wide = canvas.parentElement.clientWidth;
  const tall = Math.min(Math.max(window.innerHeight * 0.68, 240), wide * Math.max(shown.size[1] / shown.size[0], 0.4));
  const size = [Math.round(wide * ratio), Math.round(tall * ratio)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) {
    [canvas.width, canvas.height] = size;
    canvas.style.height = tall + "px";
  }
  const [left, top, w, h] = frame(), cut = cutAt();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  const result = exact === turn && after ? after : corners ? preview : after;
  if (!result) return;
  const part = (image, from, to, smooth) => {
    if (!image || to <= from) return;
    pen.save(); pen.beginPath(); pen.rect(from, 0, to - from, canvas.height); pen.clip();
    pen.imageSmoothingEnabled = smooth;
    pen.drawImage(image, left, top, w, h);
    pen.restore();
  };
  part(result, cut, canvas.width, result !== after || view.zoom < 2);
  part(before, 0, cut, true);
  if (painted && tool) {
    pen.globalAlpha = 0.5;
    pen.drawImage(tinted(), left, top, w, h);
    pen.globalAlpha = 1;
  }
  if (divider.value > 0 && divider.value < 100) {
    pen.fillStyle = "rgba(255, 255, 255, .9)";
    pen.fillRect(cut - ratio, Math.max(top, 0), 2 * ratio, Math.min(h, canvas.height));
  }
  find("before").hidden = divider.value < 12; find("after").hidden = divider.value > 88;
  find("brush").hidden = !tool && !painted;
  const hint = tool && !painted ? "paint where other strengths hold; set them under “A place of its own”" : "";
  state.textContent = exact === turn ? hint : timer ? "preview" : "computing the exact picture";
}

function tinted() { // the painted place in one color
  const tint = document.createElement("canvas");
  tint.width = mask.width; tint.height = mask.height;
  const ink = tint.getContext("2d");
  ink.drawImage(mask, 0, 0); ink.globalCompositeOperation = "source-in";
  ink.fillStyle = "#12a5b5"; ink.fillRect(0, 0, tint.width, tint.height);
  return tint;
}

// --- what is asked for -----------------------------------------------------------------------------------------------

function touched() { // something that changes the result has changed
  turn += 1;
  mixPreview();
  clearTimeout(timer);
  timer = setTimeout(() => {
    timer = 0;
    ask();
    draw();
  }, SETTLE_MS);
  draw();
}

function ask() { // one question at a time; what has moved meanwhile is asked when the answer is here
  if (asking || timer || !shown) return;
  asking = true;
  trigger("settle", { turn, mask: painted ? levels() : "" });
}

function levels() { // the mask as a gray picture
  const ink = soft.getContext("2d", { willReadFrequently: true });
  ink.filter = "none"; ink.fillStyle = "black"; ink.fillRect(0, 0, soft.width, soft.height);
  ink.drawImage(mask, 0, 0);
  return soft.toDataURL("image/png");
}

window.pisasr = { // called whenever a knob of the page has moved
  turned(ends, ...values) { // an emptied number is none, one beyond its knob the knob's end
    const [pix, sem, insidePix, insideSem, feather] = values.map((value, i) => Math.min(Math.max(value, 0), ends[i]));
    const now = { pix, sem, insidePix, insideSem, feather };
    for (const preset of document.querySelectorAll("#presets [id^=at-]")) {
      preset.setAttribute("aria-pressed", preset.id === `at-${pix}-${sem}`);
    }
    if (Object.keys(now).every((name) => now[name] === knobs[name])) return [];
    knobs = now;
    touched();
    window.pisasr.drawnAt = performance.now(); // for those who measure
    return [];
  },
  failed() { // the page has said why
    asking = false;
    state.textContent = "no exact picture";
    return [];
  },
  ready: () => Boolean(shown && corners), // the rest is for those who test: is all here, is it exact, what is it
  id: () => shown?.id,
  isExact: () => Boolean(shown && corners) && exact === turn,
  levels() {
    const sketch = document.createElement("canvas");
    [sketch.width, sketch.height] = shown.size;
    const ink = sketch.getContext("2d");
    ink.drawImage(after, 0, 0);
    return [[...ink.getImageData(0, 0, ...shown.size).data], ...shown.size];
  },
};

async function load(file) {
  const image = new Image();
  image.src = file.url;
  await image.decode();
  return image;
}

async function takeOver() { // a new value from the server: another picture, its corners, or its exact result
  const value = props.value;
  if (!value?.id) return;
  if (!value.at) { // the answer to a question
    asking = false;
    if (value.turn !== turn) ask();
  }
  const mine = ++loads, isNew = shown?.id !== value.id;
  const [exactOne, original, ...four] = await Promise.all([
    load(value.after),
    isNew ? load(value.before) : before,
    ...(isNew || !corners ? value.corners.map(load) : []),
  ]);
  if (mine !== loads) return; // a later one came meanwhile
  if (isNew) { corners = null; painted = false; exact = -1; zoomTo(0); }
  shown = value; before = original;
  if (four.length) {
    const { naturalWidth, naturalHeight } = four[0];
    for (const sketch of [preview, mask, soft]) [sketch.width, sketch.height] = [naturalWidth, naturalHeight];
    take(four);
  }
  find("empty").hidden = true;
  find("divide").hidden = find("bar").hidden = false;
  const sameKnobs = value.at ? value.at[0] === knobs.pix && value.at[1] === knobs.sem : value.turn === turn;
  if (sameKnobs || isNew) {
    after = exactOne; exact = turn; clearTimeout(timer); timer = 0;
    if (!sameKnobs) touched();
  }
  mixPreview(); fillSheet(); draw();
}

// --- the sheet of strengths ------------------------------------------------------------------------------------------

function fillSheet() {
  if (sheet.hidden || !corners) return;
  sheet.replaceChildren();
  const small = document.createElement("canvas");
  small.width = preview.width; small.height = preview.height;
  const ink = small.getContext("2d");
  const shape = sheet.clientWidth / sheet.clientHeight; // of every cell, too: each is filled by what is looked at
  const w = Math.min(small.width, small.height * shape) / Math.max(view.zoom, 1), h = w / shape;
  const corner = (length, size, middle) => Math.min(Math.max(middle * length - size / 2, 0), length - size);
  const from = [corner(small.width, w, view.x), corner(small.height, h, view.y), w, h];
  for (const pix of STEPS) for (const sem of STEPS) {
    const image = ink.createImageData(small.width, small.height);
    mix(pix, sem, image.data, null);
    ink.putImageData(image, 0, 0);
    const cell = document.createElement("button"), thumb = document.createElement("canvas");
    const scale = Math.min(320 / w, 1);
    [thumb.width, thumb.height] = [Math.max(w * scale, 1), Math.max(h * scale, 1)];
    thumb.getContext("2d").drawImage(small, ...from, 0, 0, thumb.width, thumb.height);
    cell.type = "button"; cell.dataset.pix = pix; cell.dataset.sem = sem;
    cell.setAttribute("aria-label", `repair ${pix}, detail ${sem}`);
    cell.setAttribute("aria-pressed", pix === knobs.pix && sem === knobs.sem);
    const words = document.createElement("span");
    words.textContent = sheet.clientWidth > 480 ? `repair ${pix} · detail ${sem}` : `${pix} · ${sem}`;
    cell.append(thumb, words);
    cell.onclick = () => {
      openSheet(false);
      props.value = { ...props.value, chosen: [pix, sem] };
      trigger("choose");
    };
    sheet.append(cell);
  }
}

function openSheet(open) {
  sheet.hidden = !open || !corners;
  find("compare").setAttribute("aria-expanded", !sheet.hidden);
  fillSheet();
}

// --- hands -----------------------------------------------------------------------------------------------------------

function spot(event) { // where in the picture, 0 to 1, and which screen pixel of the canvas
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width, [left, top, w, h] = frame();
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  return { x: (x - left) / w, y: (y - top) / h, onScreen: x };
}

function stroke(from, to) {
  const ink = mask.getContext("2d"), [, , w] = frame(), ratio = window.devicePixelRatio || 1;
  ink.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  ink.strokeStyle = "white"; ink.lineCap = "round";
  ink.lineWidth = (width.value * ratio * mask.width) / w;
  ink.beginPath(); ink.moveTo(from.x * mask.width, from.y * mask.height);
  ink.lineTo(to.x * mask.width + 0.01, to.y * mask.height); ink.stroke();
  painted = true;
}

function use(name) {
  tool = name;
  press("tool", (button) => button.dataset.tool === tool);
  canvas.style.cursor = tool ? "crosshair" : "grab";
  draw();
}

function lookAt(x, y) { // this point of the picture in the middle
  view.x = Math.min(Math.max(x, 0), 1);
  view.y = Math.min(Math.max(y, 0), 1);
}

function zoomTo(zoom) {
  view.zoom = zoom;
  press("zoom", (button) => Number(button.dataset.zoom) === zoom);
  draw();
}

function press(kind, isOn) { // of the buttons of a kind, those that are on
  for (const button of element.querySelectorAll(`[data-${kind}]`)) button.setAttribute("aria-pressed", isOn(button));
}

canvas.addEventListener("pointerdown", (event) => {
  if (!shown) return;
  canvas.setPointerCapture(event.pointerId);
  const here = spot(event);
  const fromDivider = Math.abs(here.onScreen - cutAt()) / (window.devicePixelRatio || 1);
  hold = { kind: tool ? "paint" : fromDivider < 14 || !view.zoom ? "divide" : "pan", last: here };
  if (tool) { stroke(here, here); mixPreview(); draw(); }
});
canvas.addEventListener("pointermove", (event) => {
  if (!hold) return;
  const here = spot(event);
  if (hold.kind === "paint") { stroke(hold.last, here); hold.last = here; exact = -1; mixPreview(); }
  else if (hold.kind === "divide") {
    const [from, to] = seen();
    divider.value = (100 * (here.onScreen - from)) / (to - from);
  }
  else {
    lookAt(view.x - (here.x - hold.last.x), view.y - (here.y - hold.last.y));
    hold.last = spot(event);
  }
  draw();
});
canvas.addEventListener("pointerup", () => { if (hold?.kind === "paint") touched(); hold = null; });
canvas.addEventListener("pointercancel", () => { hold = null; });
canvas.addEventListener("dblclick", (event) => {
  if (!shown || tool) return;
  const here = spot(event);
  lookAt(here.x, here.y);
  zoomTo(view.zoom ? 0 : 1);
});
canvas.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key], zooms = [0, 1, 2, 4], now = zooms.indexOf(view.zoom);
  if (by) { divider.value = Number(divider.value) + by; draw(); }
  else if (event.key === "+") zoomTo(zooms[Math.min(now + 1, 3)]);
  else if (event.key === "-") zoomTo(zooms[Math.max(now - 1, 0)]);
  else if (event.key === "0") zoomTo(0);
  else return;
  event.preventDefault();
});
divider.addEventListener("input", draw);
for (const button of element.querySelectorAll("[data-zoom]")) {
  button.onclick = () => zoomTo(Number(button.dataset.zoom));
}
for (const button of element.querySelectorAll("[data-tool]")) {
  button.onclick = () => use(tool === button.dataset.tool ? "" : button.dataset.tool);
}
find("compare").onclick = () => openSheet(sheet.hidden);
element.addEventListener("keydown", (event) => { if (event.key === "Escape") openSheet(false); });
find("clear").onclick = () => {
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  if (painted) { painted = false; touched(); }
};
const entrance = () => document.querySelector("#photo input[type=file]"); // the page's own; a photo may land here, too
find("empty").onclick = () => entrance()?.click();
const stage = find("stage");
stage.addEventListener("dragover", (event) => event.preventDefault());
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!event.dataTransfer.files.length || !entrance()) return;
  entrance().files = event.dataTransfer.files;
  entrance().dispatchEvent(new Event("change", { bubbles: true }));
});
document.addEventListener("error", ({ target }) => { // what this browser can't show, TIFF mostly, lies open all the same
  if (target.matches?.("#photo img")) target.alt = "no preview of such a file here; it is opened all the same";
}, true);
new ResizeObserver(draw).observe(stage);
watch("value", takeOver);
takeOver();
