// The page's viewer: before and after in one canvas, zoomed and painted on. A result is a sum of three planes, photo +
// pix * byPix + sem * bySem; the server predicts them where one looks, and they are mixed here to the numbers of a saved
// file (OpenPicture.mix). Of a base that isn't linear in pixels, `exact` replaces the mixture at rest. A stream of `look`
// is the wish for its result: where it ends, the work ends. Routes: routes.py.

const ONE = 64; // a level in the planes' whole numbers
const REST_MS = 150; // a view or a knob that rests so long is meant
const MOST = { lambda_pix: 1.5, lambda_sem: 1.5, inside_pix: 1.5, inside_sem: 1.5, feather: 64 };
const AT_ONCE_S = 60; // what takes no longer is made without being asked for

const find = (name) => element.querySelector("." + name);
const canvas = find("picture"), pen = canvas.getContext("2d"), divider = find("divider"), stage = find("stage");
const state = find("state"), width = find("width"), line = find("line"), file = find("file");
const overview = find("overview");
const [mask, soft, veil] = Array.from({ length: 3 }, () => document.createElement("canvas"));
const ratio = () => window.devicePixelRatio || 1, clamp = (x, low, high) => Math.min(Math.max(x, low), high);

let open = null, progress = {}; // what the server says of the open photo (routes.about), and of the work on it
let small = null, part = null; // layers: all at a glance, and what is seen at full size
let settings = { lambda_pix: 1, lambda_sem: 1, inside_pix: 1, inside_sem: 0, feather: 8 };
let painted = false, levels = null, strokes = [], busy = ""; // levels: of the feathered mask, 0 to 1
let view = { zoom: 0, x: 0.5, y: 0.5 }; // screen pixels for each of the picture's, 0 fits; the point in the middle
let tool = "", hold = null, holding = false, drawnAt = 0, pull = 1; // pull: of a zoom that is not meant yet
const fingers = new Map();
let work = null, asked = 0, opening = 0, resting = 0, wanted = null, exactFor = null; // wanted: done once all is whole

// --- planes ----------------------------------------------------------------------------------------------------------

class Layer { // the planes of a box of the picture, a pixel for `step` of the result's, and what they mix to
  constructor([x, y, w, h], step) {
    Object.assign(this, { x, y, w, h, step, planes: new Int16Array(9 * w * h) });
    for (const side of ["before", "after"]) {
      this[side] = Object.assign(document.createElement("canvas"), { width: w, height: h });
    }
  }
  async load([x, y, w, h] = [this.x, this.y, this.w, this.h]) { // the whole layer, or a box of it that is new
    const query = new URLSearchParams({ x, y, w, h, small: this.step > 1 ? 1 : "" });
    const came = new Int16Array(await (await ask(`planes?${query}`)).arrayBuffer());
    for (let plane = 0; plane < 3; plane++) for (let row = 0; row < h; row++) {
      const from = (plane * h + row) * w * 3, to = ((plane * this.h + y - this.y + row) * this.w + x - this.x) * 3;
      this.planes.set(came.subarray(from, from + w * 3), to);
    }
    this.draw("before", 0, 0, null);
    this.mix();
  }
  mix() { this.draw("after", settings.lambda_pix, settings.lambda_sem, levels); }
  draw(side, pix, sem, place) { // the same arithmetic as OpenPicture.mix, to the last bit
    const { planes, w, h } = this, size = w * h * 3;
    const { inside_pix: insidePix, inside_sem: insideSem } = settings;
    const ink = this[side].getContext("2d"), image = ink.createImageData(w, h), into = image.data;
    const differs = place && (insidePix !== pix || insideSem !== sem);
    const across = differs && axis(this.x, w, open.size[0] / this.step, mask.width);
    const down = differs && axis(this.y, h, open.size[1] / this.step, mask.height)
      .map(([top, low, share]) => [top * mask.width, low * mask.width, share]);
    for (let y = 0, i = 0, at = 0; y < h; y++) for (let x = 0; x < w; x++, i += 3, at += 4) {
      let p = pix, s = sem;
      if (differs) {
        const [u, v, f] = across[x], [top, low, g] = down[y];
        const share = (place[top + u] * (1 - g) + place[low + u] * g) * (1 - f)
          + (place[top + v] * (1 - g) + place[low + v] * g) * f;
        p = pix + share * (insidePix - pix); s = sem + share * (insideSem - sem);
      }
      for (let c = 0; c < 3; c++) {
        into[at + c] = (planes[i + c] + p * planes[size + i + c] + s * planes[2 * size + i + c]) / ONE;
      }
      into[at + 3] = 255;
    }
    ink.putImageData(image, 0, 0);
  }
}

function axis(start, count, length, cells) { // bilinear places on a mask: [low, high, share of the high one]
  return Array.from({ length: count }, (_, i) => {
    const at = clamp(((start + i + 0.5) * cells) / length - 0.5, 0, cells - 1), low = Math.floor(at);
    return [low, Math.min(low + 1, cells - 1), at - low];
  });
}

function feathered() { // the mask with a soft edge
  levels = null;
  if (!painted) return;
  const ink = soft.getContext("2d", { willReadFrequently: true });
  ink.filter = "none"; ink.fillStyle = "black"; ink.fillRect(0, 0, soft.width, soft.height);
  ink.filter = `brightness(0) invert(1) blur(${settings.feather / open.step}px)`; // white on black
  ink.drawImage(mask, 0, 0);
  const data = ink.getImageData(0, 0, soft.width, soft.height).data;
  levels = Float64Array.from({ length: soft.width * soft.height }, (_, i) => data[4 * i] / 255);
}

function mixAll() {
  exactFor = null;
  feathered(); small?.mix(); part?.mix(); draw(); rest();
  drawnAt = performance.now();
}

// --- the server ------------------------------------------------------------------------------------------------------

async function ask(path, options = {}, key = open.key) { // the answer; an Error with the server's line for a refusal
  const answer = await fetch(`pisasr/${key ? key + "/" : ""}${path}`.replace(/\/$/, ""), options);
  if (answer.ok) return answer;
  const words = await answer.json().catch(() => ({}));
  throw new Error(words.error ?? "the server does not answer as it should; reload the page");
}

const wish = (more) => JSON.stringify({ settings, mask: painted ? soft.toDataURL() : "", ...more });

function say(error) {
  line.textContent = !error || error.name === "AbortError" ? "" : error.message ?? error;
}

function forget(key) { if (key) fetch(`pisasr/${key}/close`, { method: "POST" }); }

async function openPhoto(body, query) { // a file, or none for other settings
  const mine = ++opening, former = open?.key;
  stop(); say(""); wanted = null;
  busy = "opening the photo"; draw();
  try {
    const words = new URLSearchParams({ ...query, settings: JSON.stringify(settings) });
    const about = await (await ask(`open?${words}`, { method: "POST", body }, "")).json();
    if (mine !== opening) return forget(about.key);
    if (!query.key) forget(former);
    await take(about, Boolean(query.key));
  } catch (error) { if (mine === opening) say(error); }
  if (mine === opening) { busy = ""; draw(); }
}

async function take(about, keepsMask) { // another photo, or the same at other settings
  const kept = keepsMask && painted && mask.toDataURL();
  open = progress = about; part = null; exactFor = null; painted = false; strokes = [];
  small = new Layer([0, 0, ...about.small], about.step);
  overview.replaceChildren(small.after, find("part"));
  for (const sketch of [mask, soft]) [sketch.width, sketch.height] = about.small;
  if (kept) await paintFrom(kept);
  feathered();
  stage.dataset.empty = false; resize();
  zoomTo(!about.is_small && fit() < 0.9 ? 1 : 0);
  say(about.notices.join("; "));
  await small.load();
  draw(); rest(0);
}

async function paintFrom(data) {
  const image = Object.assign(new Image(), { src: data });
  await image.decode();
  mask.getContext("2d").drawImage(image, 0, 0, mask.width, mask.height);
  painted = true;
}

function close() {
  stop(); opening++; wanted = null; busy = ""; forget(open?.key);
  open = small = part = levels = null; painted = false;
  stage.dataset.empty = true;
  say(""); rest(0); draw();
}

function stop() { work?.abort(); work = null; }

function rest(ms = REST_MS) { // look at what is seen, once the view and the knobs rest
  clearTimeout(resting);
  resting = setTimeout(() => { remember(); describe(); look(); }, ms);
}

function seenBox() { // of the result's pixels, what the canvas shows
  const [left, top, w, h] = frame(), [W, H] = open.size;
  const [x, right] = [-left / w, (canvas.width - left) / w].map((at) => clamp(at, 0, 1) * W);
  const [y, low] = [-top / h, (canvas.height - top) / h].map((at) => clamp(at, 0, 1) * H);
  return [Math.floor(x), Math.floor(y), Math.ceil(right) - Math.floor(x), Math.ceil(low) - Math.floor(y)];
}

const isFull = () => open.step === 1 || (view.zoom || fit()) >= 0.9; // whether single pixels of the result are seen

async function look(whole = Boolean(wanted)) { // see what is there, and have predicted what is missing
  if (!open) return;
  const mine = ++asked, key = open.key, box = isFull() ? seenBox() : [0, 0, 0, 0];
  try {
    if (open.step > 1 && isFull() && String(box) !== String(part && [part.x, part.y, part.w, part.h])) {
      const layer = new Layer(box, 1);
      await layer.load();
      if (mine !== asked || key !== open?.key) return;
      part = layer; draw();
    }
    stop();
    const control = work = new AbortController();
    if (!progress.whole) await stream(box, whole, control, key);
    if (work === control) stop();
    if (mine !== asked || key !== open?.key) return;
    if (!open.mixes) await makeExact();
    if (wanted && progress.whole) { const act = wanted; wanted = null; await act(); }
    else if (!whole && !progress.whole && progress.left_s !== null && progress.left_s <= AT_ONCE_S) return look(true);
  } catch (error) {
    say(error);
    if (error.name !== "AbortError") { wanted = null; stop(); }
  }
  draw();
}

async function stream(box, whole, control, key) { // one wish; its news come as lines
  const options = { method: "POST", body: wish({ view: box, whole, known: open.boxes.length }), signal: control.signal };
  const reader = (await ask("look", options)).body.pipeThrough(new TextDecoderStream()).getReader();
  draw();
  for (let text = "", came = await reader.read(); !came.done; came = await reader.read()) {
    const lines = (text + came.value).split("\n");
    text = lines.pop();
    for (const news of lines.map((one) => JSON.parse(one))) {
      if (news.error) throw new Error(news.error);
      if (key !== open?.key) return;
      for (const one of news.boxes) await arrived(one);
      progress = news;
      draw();
    }
  }
}

async function arrived([x, y, w, h]) { // a box of the result is predicted: fetch what of it is shown
  const k = open.step, left = Math.floor(x / k), top = Math.floor(y / k);
  const right = Math.min(Math.ceil((x + w) / k), small.w), low = Math.min(Math.ceil((y + h) / k), small.h);
  await small.load([left, top, right - left, low - top]);
  if (!open.boxes.some((box) => String(box) === String([x, y, w, h]))) open.boxes.push([x, y, w, h]);
  if (!part) return;
  const from = [Math.max(x, part.x), Math.max(y, part.y)];
  const size = [Math.min(x + w, part.x + part.w) - from[0], Math.min(y + h, part.y + part.h) - from[1]];
  if (size[0] > 0 && size[1] > 0) await part.load([...from, ...size]);
}

async function makeExact() { // of a base that doesn't mix: decode what is seen
  const body = wish();
  if (exactFor === body) return;
  const answer = await ask("exact", { method: "POST", body }), [x, y, w, h] = JSON.parse(answer.headers.get("x-box"));
  const rgb = new Uint8Array(await answer.arrayBuffer()), image = new ImageData(w, h);
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) image.data.set([rgb[i], rgb[i + 1], rgb[i + 2], 255], j);
  const layer = open.step === 1 ? small : part;
  if (!layer || wish() !== body) return;
  layer.after.getContext("2d").putImageData(image, x - layer.x, y - layer.y);
  exactFor = body;
}

async function save() { // the strengths on the screen
  state.textContent = "writing the file";
  const answer = await ask("save", { method: "POST", body: wish() });
  const name = /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(answer.headers.get("content-disposition"))[1];
  give(await answer.blob(), decodeURIComponent(name));
}

function give(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  say(`saved as ${name}`);
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function share() { // before and after with a slider, in one file that needs nothing else
  const [before, after] = ["before", "after"].map((side) => small[side].toDataURL("image/jpeg", 0.92));
  give(new Blob([`<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${open.name.replace(/[<&"]/g, "")}: before and after</title><style>body{margin:0;background:#191614;color:#eee;
font:16px system-ui;text-align:center}div{position:relative;max-width:${small.w}px;margin:auto}img{display:block;width:
100%}img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--at,50%))}input{width:100%;max-width:${small.w}px;margin:0}</style>
<div><img alt="before" src="${before}"><img alt="after" src="${after}"></div><input type="range" aria-label="before and
after" oninput="document.querySelector('div').style.setProperty('--at',this.value+'%')">
<p>before | after, by pisasr: ${strong()}</p>`], { type: "text/html" }),
  open.name.replace(/\.\w+$/, "") + "_before_after.html");
}

// --- drawing ---------------------------------------------------------------------------------------------------------

const fit = () => Math.min(canvas.width / open.size[0], canvas.height / open.size[1]) / ratio();

function frame() { // where the picture lies on the canvas: [left, top, width, height], screen pixels
  const zoom = (view.zoom || fit()) * ratio(), [w, h] = open.size.map((side) => side * zoom);
  const place = (room, size, middle) =>
    size <= room ? (room - size) / 2 : clamp(room / 2 - middle * size, room - size, 0);
  return [place(canvas.width, w, view.x), place(canvas.height, h, view.y), w, h];
}

function seen() { // the part of the canvas that the picture covers, and where before ends in it: screen pixels
  const [left, , w] = frame(), from = Math.max(left, 0), to = Math.min(left + w, canvas.width);
  return [from, to, holding ? to : from + ((to - from) * divider.value) / 100];
}

function resize() {
  const wide = stage.clientWidth, shape = open ? Math.max(open.size[1] / open.size[0], 0.4) : 0.62;
  if (!wide) return; // another tab is shown
  const tall = clamp(window.innerHeight * (window.innerWidth < 700 ? 0.42 : 0.6), 220, Math.max(wide * shape, 220));
  const size = [Math.round(wide * ratio()), Math.round(tall * ratio())];
  if (String(size) === String([canvas.width, canvas.height])) return;
  [canvas.width, canvas.height] = size;
  canvas.style.height = tall + "px";
  if (open) rest();
}

function draw() {
  resize();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  state.textContent = words();
  document.querySelector("#download")?.toggleAttribute("disabled", !open || Boolean(wanted));
  find("stop").hidden = !work;
  if (!open) return;
  const [left, top, w, h] = frame(), [from, to, cut] = seen(), scale = w / open.size[0];
  pen.imageSmoothingQuality = "high";
  pen.imageSmoothingEnabled = scale < 2 * ratio(); // of both sides alike
  for (const [side, start, end] of [["before", 0, cut], ["after", cut, canvas.width]]) {
    if (end <= start) continue;
    pen.save(); pen.beginPath(); pen.rect(start, 0, end - start, canvas.height); pen.clip();
    for (const layer of [small, isFull() && part].filter(Boolean)) {
      const unit = layer.step * scale;
      pen.drawImage(layer[side], left + layer.x * unit, top + layer.y * unit, layer.w * unit, layer.h * unit);
    }
    if (side === "after" && !progress.whole && open.mixes) { // what isn't predicted is hatched: a broad line of dashes
      [veil.width, veil.height] = [canvas.width, canvas.height];
      const ink = veil.getContext("2d");
      ink.rect(left, top, w, h); ink.clip(); ink.setLineDash([ratio(), 15 * ratio()]); ink.beginPath();
      Object.assign(ink, { strokeStyle: "rgba(255, 255, 255, .5)", shadowColor: "black", shadowBlur: 2 * ratio() });
      const far = ink.lineWidth = 2 * (veil.width + veil.height);
      ink.lineTo(0, 0); ink.lineTo(far, far); ink.stroke();
      for (const [x, y, wide, high] of open.boxes) ink.clearRect(left + x * scale, top + y * scale, wide * scale, high * scale);
      pen.drawImage(veil, 0, 0);
    }
    pen.restore();
  }
  if (painted && tool) {
    pen.globalAlpha = 0.5; pen.drawImage(mask, left, top, w, h); pen.globalAlpha = 1;
  }
  pen.fillStyle = "rgba(255, 255, 255, .9)";
  if (cut > from && cut < to) pen.fillRect(cut - ratio(), Math.max(top, 0), 2 * ratio(), Math.min(h, canvas.height));
  find("before").hidden = cut - from < 80 * ratio(); find("after").hidden = to - cut < 80 * ratio();
  divider.hidden = holding; // else its handle is on the line
  Object.assign(divider.style, { left: `${from / ratio() - 22}px`, width: `${(to - from) / ratio() + 44}px` });
  find("brush").hidden = !tool && !painted;
  overview.hidden = !view.zoom;
  const [x, y, wide, high] = seenBox().map((at, i) => `${(100 * at) / open.size[i % 2]}%`);
  Object.assign(find("part").style, { left: x, top: y, width: wide, height: high });
}

function words() { // what goes on, in a line
  if (busy || !open) return busy;
  const factor = `${open.factor} time${open.factor > 1 ? "s" : ""}: ${open.size[0]} × ${open.size[1]} px`;
  const left = progress.left_s, minutes = left / 60;
  const time = left === null ? "" : left < 90 ? `, about ${Math.max(Math.round(left), 1)} s`
    : minutes < 90 ? `, about ${Math.round(minutes)} min` : `, about ${(minutes / 60).toFixed(1)} hours`;
  if (tool && !painted) return "paint where other strengths hold; set them under “A place of its own”";
  if (work && wanted) return `making the whole${time} left`;
  if (work) return `repairing what is seen · ${factor}`;
  if (progress.whole) return factor;
  const done = `${Math.round(100 * progress.part)} % repaired${open.mixes ? ", the rest hatched" : ""}`;
  return `${factor} · ${done}; Download makes the whole${time}`;
}

const strong = () => `repair ${settings.lambda_pix}, detail ${settings.lambda_sem}`;

function describe() { // for who doesn't see it
  const shown = view.zoom ? `${view.zoom.toFixed(1)} to 1, around ${Math.round(100 * view.x)} % from the left and `
    + `${Math.round(100 * view.y)} % from the top` : "all of it";
  canvas.setAttribute("aria-label", !open ? "No picture is open" : `${open.name}, ${words()}. Shown: ${shown}; before is `
    + `left of ${Math.round(divider.value)} %, after right of it; ${strong()}. Arrows move it, `
    + "plus and minus zoom, space shows before.");
}

// --- knobs, and what outlives a reload -------------------------------------------------------------------------------

function remember() {
  const kept = open && { key: open.key, settings, mask: painted ? mask.toDataURL() : "", view };
  try { sessionStorage.setItem("pisasr", JSON.stringify(kept)); } catch {} // full: it isn't kept
}

const kept = (() => { try { return JSON.parse(sessionStorage.getItem("pisasr")); } catch { return null; } })();

window.pisasrKnobs = (names, values) => // of a page that is loaded again
  names.map((name, i) => kept?.settings[name] ?? values[i]);

window.pisasr = {
  told(names, values) { // whenever a control of the page has moved: an emptied number is 0, one beyond its knob the end
    const now = Object.fromEntries(names.map((name, i) => [name, values[i]])), before = settings;
    for (const name in MOST) now[name] = clamp(now[name] ?? 0, 0, MOST[name]);
    settings = { ...now, upscale: now.upscale || null, color_fix: now.color_fix || null };
    press("#presets [id^=at-]", (preset) => preset.id === `at-${now.lambda_pix}-${now.lambda_sem}`);
    const isTurned = (name) => before[name] !== settings[name];
    if (Object.keys(MOST).some(isTurned) && open) mixAll();
    const others = ["upscale", "color_fix", "prompt", "model"].filter((name) => name in before);
    if (others.some(isTurned) && open) openPhoto(null, { key: open.key });
    const size = now.upscale ? `${now.upscale} times as large` : "as large as fits, up to 4 times";
    return `At ${strong()}; ${size}; as ${now.format}${now.keep_exif ? " with EXIF" : ""}.`;
  },
  download() { wanted = save; look(); }, // the whole is made first
  drawnAt: () => drawnAt, // the rest is for those who test
  id: () => open?.key ?? null,
  about: () => ({ ...open, ...progress, boxes: open?.boxes, view }),
  isExact: () => Boolean(open && (open.mixes ? progress.part === 1 : exactFor === wish())),
  levels() { // of what is seen at full size
    const layer = open.step === 1 ? small : part;
    return [[...layer.after.getContext("2d").getImageData(0, 0, layer.w, layer.h).data], layer.w, layer.h];
  },
};

async function start() { // a photo of before the reload, or an example
  try {
    settings = kept.settings;
    await take(await (await ask("", {}, kept.key)).json());
    view = kept.view;
    if (kept.mask) await paintFrom(kept.mask);
    zoomTo(view.zoom); mixAll();
  } catch { document.querySelector("[data-example]")?.click(); }
}

// --- hands -----------------------------------------------------------------------------------------------------------

function spot(event) { // where in the picture, 0 to 1, and which screen pixels of the canvas
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  return spotAt((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
}

function spotAt(atX, atY) {
  const [left, top, w, h] = frame();
  return { x: (atX - left) / w, y: (atY - top) / h, atX, atY };
}

function stroke(from, to) {
  const ink = mask.getContext("2d"), [, , w] = frame();
  ink.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  ink.strokeStyle = "#12a5b5"; ink.lineCap = "round";
  ink.lineWidth = (width.value * ratio() * mask.width) / w;
  ink.beginPath(); ink.moveTo(from.x * mask.width, from.y * mask.height);
  ink.lineTo(to.x * mask.width + 0.01, to.y * mask.height); ink.stroke();
  painted = true;
  draw();
}

function use(name) { // a tool, or put it away
  tool = tool === name ? "" : name;
  press("[data-tool]", (button) => button.dataset.tool === tool);
  canvas.style.cursor = tool ? "crosshair" : "grab";
  canvas.style.touchAction = tool ? "none" : "pan-y";
  const place = document.querySelector("#place > button");
  if (tool && place && !place.classList.contains("open")) place.click();
  draw();
}

function lookAt(x, y) { // this point of the picture in the middle, as far as its edges let it
  Object.assign(view, { x, y });
  ({ x: view.x, y: view.y } = spotAt(canvas.width / 2, canvas.height / 2));
  draw(); rest();
}

function zoomTo(zoom, at = null) { // at: the spot that stays where it is
  const [left, top, w, h] = frame();
  view.zoom = zoom > fit() ? Math.min(zoom, 8) : 0;
  press("[data-zoom]", (button) => Number(button.dataset.zoom) === view.zoom);
  const [, , wide, high] = frame();
  if (!at) return lookAt(view.x, view.y);
  lookAt(at.x + (canvas.width / 2 - (left + at.x * w)) / wide, at.y + (canvas.height / 2 - (top + at.y * h)) / high);
}

function zoomBy(by, at) { // between fit and 1:1 there is nothing to see sharply: a clear pull leads over
  const now = view.zoom || fit(), least = Math.max(fit(), 1) * 0.999;
  pull = Math.min(now, now * by) >= least ? 1 : pull * by;
  if (pull === 1) zoomTo(now * by, at);
  else if (Math.abs(Math.log(pull)) > 0.2) { zoomTo(pull > 1 ? Math.max(fit(), 1, now * pull) : 0, at); pull = 1; }
}

function press(css, isOn) { // of some buttons, those that are on
  for (const button of document.querySelectorAll(css)) button.setAttribute("aria-pressed", isOn(button));
}

const on = (target, names, act, options) => names.split(" ").forEach((name) => target.addEventListener(name, act, options));

on(canvas, "pointerdown", (event) => {
  if (!open) return;
  canvas.setPointerCapture(event.pointerId);
  const here = spot(event), isNear = Math.abs(here.atX - seen()[2]) < 14 * ratio();
  fingers.set(event.pointerId, here);
  hold = { kind: fingers.size === 2 ? "pinch" : tool ? "paint" : isNear || !view.zoom ? "divide" : "pan", last: here };
  if (hold.kind !== "paint") return;
  strokes = [...strokes.slice(-4), mask.getContext("2d").getImageData(0, 0, mask.width, mask.height)];
  stroke(here, here);
});
on(canvas, "pointermove", (event) => {
  if (!hold || !open) return;
  const here = spot(event), [from, to] = seen(), [, , w, h] = frame();
  if (hold.kind === "pinch") {
    const [one, two] = fingers.values();
    fingers.set(event.pointerId, here);
    const [a, b] = fingers.values(), far = (p, q) => Math.max(Math.hypot(p.atX - q.atX, p.atY - q.atY), 1);
    const [x, y] = [(a.atX + b.atX) / 2, (a.atY + b.atY) / 2];
    lookAt(view.x - (x - (one.atX + two.atX) / 2) / w, view.y - (y - (one.atY + two.atY) / 2) / h);
    zoomBy(far(a, b) / far(one, two), spotAt(x, y));
  } else if (hold.kind === "paint") stroke(hold.last, here);
  else if (hold.kind === "divide") { divider.value = (100 * (here.atX - from)) / (to - from); draw(); }
  else lookAt(view.x - (here.atX - hold.last.atX) / w, view.y - (here.atY - hold.last.atY) / h);
  hold.last = spot(event);
});
on(canvas, "pointerup pointercancel", (event) => {
  fingers.delete(event.pointerId);
  if (hold?.kind === "paint") mixAll();
  hold = null;
});
on(overview, "pointerdown pointermove", (event) => { // go where one presses
  const { clientWidth, clientHeight } = overview;
  if (event.buttons) lookAt(event.offsetX / clientWidth, event.offsetY / clientHeight);
});
on(canvas, "dblclick", (event) => { if (open && !tool) zoomTo(view.zoom ? 0 : Math.max(1, 2 * fit()), spot(event)); });
on(canvas, "wheel", (event) => {
  if (!open) return;
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 400), spot(event));
}, { passive: false });
const before = (isHeld) => { holding = isHeld; draw(); };
on(canvas, "keydown", (event) => {
  if (!open) return;
  const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  const [, , w, h] = frame();
  if (view.zoom && !event.shiftKey && (x || y)) lookAt(view.x + (x * canvas.width) / 4 / w, view.y + (y * canvas.height) / 4 / h);
  else if (x) { divider.value = Number(divider.value) + 2 * x; draw(); rest(); }
  else if (event.key === "+") zoomBy(2);
  else if (event.key === "-") zoomBy(0.5);
  else if (event.key === "0") zoomTo(0);
  else if (event.key === " ") before(true);
  else return;
  event.preventDefault();
});
on(canvas, "keyup", (event) => { if (event.key === " ") before(false); });
on(find("hold"), "pointerdown", () => before(true));
on(find("hold"), "pointerup pointerleave pointercancel blur keyup", () => before(false));
on(find("hold"), "keydown", (event) => { if (event.key === " ") before(true); });
on(divider, "input", () => { draw(); rest(); });
on(document, "pointerdown", ({ target: knob }) => { // a swipe that turns out to scroll the page turns no knob
  const { value } = knob, undo = () => { knob.value = value; knob.dispatchEvent(new Event("input", { bubbles: true })); };
  if (knob.type === "range") knob.onpointercancel = undo;
});
for (const button of element.querySelectorAll("[data-zoom]")) button.onclick = () => zoomTo(Number(button.dataset.zoom));
for (const it of element.querySelectorAll("[data-tool]")) it.onclick = () => use(it.dataset.tool);
find("share").onclick = () => { wanted = share; look(); };
find("close").onclick = close;
find("stop").onclick = () => { asked++; wanted = null; stop(); draw(); };
find("empty").onclick = find("another").onclick = () => file.click();
find("undo").onclick = () => {
  if (strokes.length) { mask.getContext("2d").putImageData(strokes.pop(), 0, 0); mixAll(); }
};
find("clear").onclick = () => { mask.width *= 1; painted = false; strokes = []; mixAll(); }; // setting a size empties
const receive = (photo) => { if (photo && stage.offsetParent) openPhoto(photo, { name: photo.name || "pasted.png" }); };
file.onchange = () => { receive(file.files[0]); file.value = ""; };
on(document, "dragover drop", (event) => {
  if (!stage.offsetParent) return; // another tab of the page
  event.preventDefault();
  receive(event.dataTransfer.files[0]);
});
on(document, "paste", (event) => receive(event.clipboardData.files[0]));
on(document, "click", (event) => {
  const example = event.target.closest?.("[data-example]")?.dataset.example;
  if (example) fetch(`pisasr/examples/${example}`).then(async (it) => openPhoto(await it.blob(), { name: example })).catch(say);
});
document.querySelector(".gradio-container").style.overflow = "clip"; // a hidden one holds what sticks
new ResizeObserver(draw).observe(stage);
draw();
setTimeout(start, 100); // when the page has told its knobs
