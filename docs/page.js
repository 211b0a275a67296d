// The page: sends the frames of a source to the worker one at a time, shows the results, and keeps the log.

import { IMAGE_SIZE, annotateFrame, colorOf, inkOn, percent } from "./faces.js";
import { openCamera, openFile, openVideo } from "./video.js";

const CLIP = "vendor/demo.mp4";
const CANVAS_WIDTH = 1280; // Pixels of the widest drawing.
const NARROWEST = 3 / 4, WIDEST = 2; // Width by height of the stage; other pictures get a border.
const LETTERS = 12; // CSS pixels of the smallest label.
const RATE_FRAMES = 30; // Frames over which the rate is averaged.
const SPOKEN_SECONDS = 2; // Least time between two announcements to a screen reader.
const STALLED_SECONDS = 3; // Time without a picture from the camera before the page says so.
const MAX_LOG_ROWS = 500_000; // Five hours of one face; about 60 MB.
const PROBLEMS = { // By the name of the browser's error.
  NotAllowedError: "The browser blocks the camera for this page. Allow it in the address bar, then start the camera.",
  NotReadableError: "Another program is using the camera. Close it, then start the camera.",
};
const NO_CAMERA = ["NotFoundError", "OverconstrainedError"];

const $ = (id) => document.getElementById(id);
let classes = null; // The emotions, in the order of the probabilities; null until the worker has loaded.
let source = null; // The source that is playing.
let starts = 0; // Number of the source. A new number tells the worker to start a new tracker.
let opening = new AbortController(); // Stops opening a source, and closes one that is open.
let awake = null; // A promise of the lock that keeps the screen on.
let open = null; // Opens the latest source again.
let mirrored = false;
let shown = null; // The frame on the canvas: { image, faces, mirrored, scale }.
let times = []; // Times of the last frames, in milliseconds.
let spokenTime = -Infinity; // Time of the last announcement, in seconds.
let log = { columns: [], rows: [] };

// 1. The worker -------------------------------------------------------------------------------------------------------

const worker = new Worker("worker.js");
const waiting = []; // Functions that receive the answers, in the order of the frames.

const loaded = new Promise((resolve, reject) => {
  worker.onmessage = ({ data }) => {
    if (data.progress) $("progress").value = data.progress;
    else if (data.classes) resolve(data.classes);
    else if (data.failure) reject(new Error(`The demo cannot load: ${data.failure} Reload the page.`));
    else waiting.shift()(data);
  };
  worker.onerror = () => reject(new Error("The demo cannot load in this browser. Use a current one."));
});

async function ask(frame) {
  const answer = await new Promise((resolve) => {
    waiting.push(resolve);
    worker.postMessage(frame, [frame.image]);
  });
  if (answer.error) throw new Error(`The worker failed: ${answer.error}. Reload the page.`);
  return answer;
}

// 2. Starting and stopping --------------------------------------------------------------------------------------------

// Plays the source that `opener` opens, until it ends or another one starts.
async function start(opener, mirror) {
  stop(classes ? "Opening …" : "Loading the network and the face detector …");
  starts += 1;
  open = opener;
  opening = new AbortController();
  const { signal } = opening;
  awake = navigator.wakeLock?.request("screen").catch(() => null); // Safari grants it only right after a click.
  $("stop").hidden = false;
  try {
    await loaded;
    if (signal.aborted) return;
    const opened = await opener(signal);
    if (signal.aborted) return opened.close();
    source = opened;
    setMirrored(mirror ?? opened.mirrored ?? false);
    setMessage(opened.still ? "Looking for faces …" : opened.note ?? "");
    setState("playing");
    if (opened.deviceId) await listCameras(opened.deviceId);
    await play(opened);
    if (source !== opened || opened.still) return;
    if (shown) speak(shown.faces, { now: true }); // The last frame stays visible.
    end(describeEnd(opened));
  } catch (error) {
    if (!signal.aborted) stop(error.message);
  }
}

function describeEnd({ live, isDamaged }) {
  if (live) return "The camera was disconnected.";
  return isDamaged() ? "The video is damaged, so the rest cannot be played." : "The video has ended.";
}

function stop(message = "") {
  opening.abort();
  end(message);
  setState("idle");
  shown?.image.close();
  shown = null;
  $("picture").width = 0; // Clears it.
  $("stage").style.aspectRatio = "";
  $("faces").replaceChildren();
  $("spoken").textContent = ""; // So that the same words about the next picture are announced again.
  showNearest(null);
}

// Ends the source. Its last frame stays visible.
function end(message) {
  source?.close();
  source = null;
  awake?.then((lock) => lock?.release());
  setState("ended");
  setMessage(message);
}

async function openCameraOrClip(signal) {
  const chosen = $("choice").value;
  try {
    return await openCamera(chosen, signal);
  } catch (error) {
    if (!NO_CAMERA.includes(error.name)) throw new Error(PROBLEMS[error.name] ?? error.message);
    if (!chosen) return { ...await openClip(signal), note: "No camera found, so the example plays." };
    $("choice").value = ""; // The chosen camera is gone, but there may be another one.
    return openCameraOrClip(signal);
  }
}

async function openClip(signal) {
  try {
    return await openVideo({ src: CLIP }, signal);
  } catch ({ name }) {
    const isBlocked = name === "NotAllowedError"; // An iPhone in Low Power Mode plays only right after a click.
    throw new Error(isBlocked ? "Play the example again." : "The example cannot be loaded. Reload the page.");
  }
}

async function listCameras(chosen) {
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  const options = cameras.map(({ label, deviceId }, i) => new Option(label || `Camera ${i + 1}`, deviceId));
  $("choice").replaceChildren(...options);
  $("choice").value = chosen;
  $("cameras").hidden = cameras.length < 2;
}

async function play(playing) {
  beginLog(playing.live);
  times = [];
  spokenTime = -Infinity;
  for (let number = 0; ; number += 1) {
    const frame = await nextFrame(playing);
    if (!frame || playing !== source) return;
    const isMirrored = mirrored;
    const { image, time, scale } = frame;
    const answer = await ask({ image, time, source: starts, still: playing.still, mirrored: isMirrored });
    if (playing !== source) return answer.image.close();
    // Large frames were reduced. The boxes are in pixels of the original frame, as in the Python demo.
    const faces = answer.faces.map((face) => ({ ...face, box: face.box.map((side) => Math.round(side / scale)) }));
    shown?.image.close();
    shown = { image: answer.image, faces, scale, mirrored: isMirrored };
    draw();
    showFaces(faces);
    if (playing.still) setMessage("");
    else showRate();
    writeLog(number, time, faces, playing.live);
  }
}

async function nextFrame(playing) {
  if (!playing.live) return playing.next();
  const stalled = setTimeout(() => setMessage("The camera sends no picture."), 1000 * STALLED_SECONDS);
  const frame = await playing.next();
  clearTimeout(stalled);
  setMessage("");
  return frame;
}

// 3. Showing ----------------------------------------------------------------------------------------------------------

// Draws the frame that was analyzed, and its faces.
function draw() {
  const { image, faces, scale } = shown;
  const canvas = $("picture"), context = canvas.getContext("2d"), ratio = image.width / image.height;
  $("stage").style.aspectRatio = Math.min(WIDEST, Math.max(NARROWEST, ratio));
  const { clientWidth, clientHeight } = $("stage");
  canvas.width = Math.min(CANVAS_WIDTH, devicePixelRatio * Math.max(1, Math.min(clientWidth, clientHeight * ratio)));
  canvas.height = Math.max(1, Math.round(canvas.width / ratio));
  if (shown.mirrored) context.setTransform(-1, 0, 0, 1, canvas.width, 0);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.resetTransform();
  const pixelsPerCss = Math.max(canvas.width / canvas.clientWidth, canvas.height / canvas.clientHeight);
  const letters = Math.min(Math.max(LETTERS * pixelsPerCss, canvas.height / 32), canvas.width / 8); // A label fits.
  annotateFrame(context, faces, canvas.width / image.width * scale, letters);
}

function showFaces(faces) {
  $("faces").replaceChildren(...faces.map((face) => {
    const item = document.createElement("li");
    item.textContent = `Face ${face.track}: ${face.label}${face.held ? "" : ` ${percent(face.confidence)}`}`;
    paint(item, face.label);
    return item;
  }));
  showNearest(faces.reduce((nearest, face) => (nearest?.box[2] >= face.box[2] ? nearest : face), null)); // The widest.
  speak(faces);
}

// Shows a face's emotion, its probabilities, and the network's input. `face` may be null.
function showNearest(face) {
  $("label").textContent = face?.label ?? "No face";
  $("confidence").textContent = face && !face.held ? percent(face.confidence) : "";
  $("symbol").setAttribute("href", `#face-${face?.label}`);
  paint($("result"), face?.label);
  [...$("bars").children].forEach((row, i) => {
    const probability = face?.probabilities[i] ?? 0;
    row.style.setProperty("--share", probability);
    row.querySelector(".share").textContent = percent(probability);
  });
  const context = $("crop").getContext("2d"), pixels = context.createImageData(IMAGE_SIZE, IMAGE_SIZE);
  face?.crop.forEach((gray, i) => pixels.data.set([gray, gray, gray, 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

function makeBars() {
  $("bars").replaceChildren(...classes.map((emotion) => {
    const row = $("row").content.firstElementChild.cloneNode(true);
    row.querySelector("dt").textContent = emotion;
    paint(row, emotion);
    return row;
  }));
}

// Gives an element the color of a label, or removes its color.
function paint(element, label) {
  element.style.setProperty("--color", label ? `rgb(${colorOf(label)})` : "");
  element.style.setProperty("--ink-on-color", label ? inkOn(colorOf(label)) : "");
}

function showRate() {
  times = [...times.slice(1 - RATE_FRAMES), performance.now()];
  const rate = 1000 * (times.length - 1) / (times.at(-1) - times[0]);
  if (times.length > 1) $("rate").textContent = `${rate.toFixed(0)} frames/s`;
}

// Announces the faces to a screen reader and describes the picture, at most every SPOKEN_SECONDS unless `now` is set.
function speak(faces, { now = false } = {}) {
  const text = faces.map((face) => `Face ${face.track}: ${face.label}`).join(", ") || "No face";
  const time = performance.now() / 1000, isEarly = !now && time - spokenTime < SPOKEN_SECONDS;
  if (text === $("spoken").textContent || isEarly) return;
  spokenTime = time;
  $("spoken").textContent = text;
  $("picture").setAttribute("aria-label", text);
}

function setState(state) {
  document.body.dataset.state = state;
  for (const id of ["stop", "mirror", "rate"]) $(id).hidden = state !== "playing";
}

function setMessage(text) {
  $("message").textContent = text;
}

function setMirrored(value) {
  mirrored = value;
  $("mirror").setAttribute("aria-pressed", value);
}

// 4. The log: the columns and the rounding of the Python demo's --log -------------------------------------------------

function beginLog(live) {
  const columns = ["frame", "time_s", "track", "x", "y", "width", "height", "label", "confidence", ...classes];
  log = { columns: [...columns, "angle", "held", ...(live ? ["utc"] : [])], rows: [] };
}

// Adds the rows of a frame: one per face, or one with empty fields.
function writeLog(number, time, faces, live) {
  if (log.rows.length >= MAX_LOG_ROWS) return;
  const utc = live ? [new Date().toISOString().replace("Z", "+00:00")] : [];
  const noFace = Array(log.columns.length - 2 - utc.length).fill("");
  const fields = faces.map(({ track, box, label, confidence, probabilities, angle, held }) => (
    [track, ...box, label, round(confidence, 4), ...probabilities.map((share) => round(share, 4)), angle, Number(held)]
  ));
  for (const face of fields.length ? fields : [noFace]) log.rows.push([number, round(time, 3), ...face, ...utc].join());
  const isFull = log.rows.length >= MAX_LOG_ROWS;
  const count = `${log.rows.length.toLocaleString("en")} ${log.rows.length === 1 ? "row" : "rows"}`;
  $("rows").textContent = isFull ? `${count}, full` : count;
  $("download").disabled = false;
}

function downloadLog() {
  const text = [log.columns.join(), ...log.rows, ""].join("\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "emotions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function round(number, digits) {
  return Math.round(number * 10 ** digits) / 10 ** digits;
}

// 5. Events -----------------------------------------------------------------------------------------------------------

$("camera").onclick = () => start(openCameraOrClip);
$("choice").onchange = () => start(openCameraOrClip);
$("clip").onclick = () => start(openClip);
$("open").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) start((signal) => openFile(file, signal));
  $("file").value = ""; // So that choosing the same file again fires the event.
};
$("mirror").onclick = () => {
  if (source?.still) start(open, !mirrored);
  else setMirrored(!mirrored);
};
$("stop").onclick = () => stop();
$("download").onclick = downloadLog;
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = document.ondragend = () => document.body.classList.remove("dropping");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) start((signal) => openFile(file, signal));
};
window.onresize = () => shown && draw();

for (const face of document.querySelectorAll("[data-emotion]")) paint(face, face.dataset.emotion);
loaded.then((emotions) => {
  classes = emotions;
  $("progress").hidden = true;
  makeBars();
}, (error) => {
  $("progress").hidden = true;
  setMessage(error.message);
});
