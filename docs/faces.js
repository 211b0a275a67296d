// From a frame to boxes, crops, probabilities and a drawing: a port of utils.py, with the same order and names.
//
//     gray           cv.Mat, CV_8UC1       grayscale frame
//     box            [x, y, width, height] in frame pixels
//     face           Uint8Array (2304)     raw 0..255, 48x48 pixels: the network's input
//     probabilities  array (C)             in the order of the model's classes; they sum to 1
//
// The worker calls loadOpenCV first. The page uses only the constants and annotateFrame, which need no OpenCV.

// 1. Labels, shapes ---------------------------------------------------------------------------------------------------

const EMOTION_COLORS = { // RGB, the Okabe-Ito palette, which color-blind readers can tell apart.
  Angry: [213, 94, 0],
  Disgust: [0, 158, 115],
  Fear: [204, 121, 167],
  Happy: [230, 159, 0],
  Sad: [0, 114, 178],
  Surprise: [86, 180, 233],
  Neutral: [127, 127, 127],
};
const UNCERTAIN_COLOR = [90, 90, 90], DARK = [32, 32, 32];
export const IMAGE_SIZE = 48; // Pixels, width and height of a face.
export const UNCERTAIN = "uncertain"; // The label of a face whose most probable emotion is below the minimum.

// 2. Frame -> faces ---------------------------------------------------------------------------------------------------

const CASCADES = {
  frontal: "haarcascade_frontalface_default.xml",
  confirming: "haarcascade_frontalface_alt.xml",
  profile: "haarcascade_profileface.xml",
};
// The frontal cascades get the square root of the gray levels. The network gets the gray levels as they are.
export const TONE = Uint8Array.from({ length: 256 }, (_, level) => Math.round(Math.sqrt(level / 255) * 255));
export const SEARCH_WIDTH = 64; // Pixels of the face in a search around a box.
const SEARCH_MARGIN = 0.3; // On each side of the box, in widths of the box.
const SEARCH_SIZES = [0.75, 1.35]; // The smallest and the largest face, in widths of the box.
const SEARCH_STEP = 1.1; // Ratio of successive sizes.
// Detections that have to agree on a new face: of `frontal`, of `confirming`, and of `frontal` if that finds none.
export const NEW_NEIGHBORS = 5;
const CONFIRMING_NEIGHBORS = 4;
const SURE_NEIGHBORS = 30;
const SURE_SCORE = 0.97; // The network's probability that a new face is one; see utils.py.
const LEAST_SCORE = 0.1;
const SCORE_EVIDENCE = 60;
const MIN_OVERLAP = 0.5; // Two boxes sharing this much of the smaller one cannot both be faces.

// Single images; see utils.py.
const STILL_LINES = 1440;
const LONGEST_SIDE = 20_000;
const STILL_WIDTH = 96;
const STILL_ANGLES = [0, -25, 25, -50, 50];
const STILL_PADDING = 0.25;
const STILL_EVIDENCE = 30;
const LEAST_EVIDENCE = 20;
const LEAST_SHARE = 0.2;
const PROFILE_NEIGHBORS = 7;
const PORTRAIT_SIZES = [IMAGE_SIZE, 112];
const PORTRAIT_CONTRAST = 5;
const PORTRAIT_SHARE = 0.7;

export let cv;
let temporaries = [];

// Registers an OpenCV object to be freed with the frame, because the garbage collector does not see it. Returns it.
export function temporary(object) {
  temporaries.push(object);
  return object;
}

export function releaseTemporaries() {
  for (const object of temporaries) object.delete();
  temporaries = [];
}

export async function fetchBytes(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} is missing (${response.status}).`);
  return new Uint8Array(await response.arrayBuffer());
}

// Loads OpenCV from a folder.
export async function loadOpenCV(folder) {
  const { default: load } = await import(`${folder}opencv.js`);
  cv = await new Promise((resolve, reject) => { // OpenCV itself does not report a failed download.
    const instantiateWasm = (imports, receive) => {
      WebAssembly.instantiateStreaming(fetch(`${folder}opencv.wasm`), imports)
        .then(({ instance }) => receive(instance)).catch(reject);
      return {};
    };
    load({ instantiateWasm }).then(resolve, reject);
  });
}

// Loads CASCADES from a folder. Returns a cv.CascadeClassifier for each of its names. The caller adds the `model`.
export async function loadFaceDetector(folder) {
  const detector = {};
  for (const [name, file] of Object.entries(CASCADES)) {
    cv.FS_createDataFile("/", file, await fetchBytes(folder + file), true, false, false);
    detector[name] = new cv.CascadeClassifier();
    if (!detector[name].load(file)) throw new Error(`${file} is damaged.`);
    cv.FS_unlink(`/${file}`);
  }
  return detector;
}

// Changes the gray levels of an image to those in a table; null leaves them as they are. Returns the image.
export function applyTone(image, tone) {
  const levels = image.data; // Each access to `data` makes a new array.
  if (tone) for (let i = 0; i < levels.length; i++) levels[i] = tone[levels[i]];
  return image;
}

// Finds the faces of a single image, tilted ones and profiles too. Returns a list of { box, angle }, largest first.
//
// A small square image without a smaller face counts as one face, because data sets have such portraits.
export async function findFaces(gray, detector) {
  const frontal = await findFrontal(gray, detector), size = gray.rows;
  const faces = frontal.length ? frontal : findProfiles(gray, detector);
  if (isPortrait(gray) && faces.every(({ box }) => box[2] > PORTRAIT_SHARE * size)) {
    return [{ box: [0, 0, size, size], angle: 0 }];
  }
  return faces.map(({ box, angle }) => ({ box: box.map(roundHalfToEven), angle }));
}

// Returns whether an image has the shape of a cropped face, and is not plain.
function isPortrait({ rows, cols, data }) {
  const [smallest, largest] = PORTRAIT_SIZES;
  return rows === cols && smallest <= rows && rows <= largest && standardDeviation(data) >= PORTRAIT_CONTRAST;
}

// Returns the faces that look ahead, largest first.
async function findFrontal(gray, detector) {
  const found = STILL_ANGLES.flatMap((angle) => (
    scan(gray, detector.frontal, NEW_NEIGHBORS, { angle }).map((box) => ({ box, angle }))
  ));
  for (const face of found) {
    face.evidence = await faceEvidence(gray, face.box, detector, { angle: face.angle, faceWidth: STILL_WIDTH });
  }
  found.sort((a, b) => b.evidence - a.evidence || compareBoxes(a.box, b.box));
  const faces = [];
  // A face has most evidence at its own angle. Its eyes and mouth have less than the whole.
  for (const face of found) {
    if (face.evidence >= STILL_EVIDENCE && !overlapsAny(face.box, faces.map(({ box }) => box))) faces.push(face);
  }
  if (!faces.length) {
    const least = LEAST_SHARE * Math.min(gray.rows, gray.cols);
    const isAlone = ({ evidence, box, angle }) => evidence >= LEAST_EVIDENCE && box[2] >= least && angle === 0;
    faces.push(...found.filter(isAlone).slice(0, 1));
  }
  return faces.sort(compareSizes);
}

// Returns the faces that look to a side, largest first.
function findProfiles(gray, detector) {
  const faces = [];
  for (const flipped of [false, true]) {
    for (const place of scan(gray, detector.profile, PROFILE_NEIGHBORS, { flipped, tone: null })) {
      const found = searchFace(gray, place, detector.profile, PROFILE_NEIGHBORS, { flipped, tone: null });
      if (found && !overlapsAny(found.box, faces.map(({ box }) => box))) faces.push({ box: found.box, angle: 0 });
    }
  }
  return faces.sort(compareSizes);
}

// Returns the boxes that a cascade finds in a whole image, turned by an angle and flipped.
function scan(gray, cascade, neighbors, { angle = 0, flipped = false, tone = TONE }) {
  const shorter = Math.min(gray.rows, gray.cols), longer = Math.max(gray.rows, gray.cols);
  const reduction = Math.min(1, STILL_LINES / shorter, LONGEST_SIDE / longer);
  if (shorter * reduction < 1) return []; // No face fits into so narrow an image.
  const reduced = temporary(new cv.Mat()), padded = temporary(new cv.Mat());
  cv.resize(gray, reduced, new cv.Size(0, 0), reduction, reduction, cv.INTER_AREA);
  const padding = roundHalfToEven(STILL_PADDING * Math.min(reduced.rows, reduced.cols));
  applyTone(reduced, tone);
  cv.copyMakeBorder(reduced, padded, padding, padding, padding, padding, cv.BORDER_REPLICATE);
  const { image, turnBack } = turnUpright(padded, angle, flipped);
  const found = detectMultiScale(cascade, image, SEARCH_STEP, neighbors, IMAGE_SIZE).map(({ box }) => box);
  return found.sort(compareBoxes).map(([x, y, width]) => {
    const corner = turnBack([x + width / 2, y + width / 2]).map((side) => side - padding - width / 2);
    return [...corner, width, width].map((side) => side / reduction);
  });
}

// Returns an image turned so that tilted heads are upright, and a function that turns points [x, y] back.
export function turnUpright(image, angle, flipped = false) {
  if (!angle && !flipped) return { image, turnBack: (point) => point };
  const toUpright = temporary(cv.getRotationMatrix2D(new cv.Point(image.cols / 2, image.rows / 2), angle, 1));
  const matrix = toUpright.data64F, turned = temporary(new cv.Mat()), back = temporary(new cv.Mat());
  if (flipped) matrix.set([-matrix[0], -matrix[1], image.cols - matrix[2]]);
  cv.warpAffine(image, turned, toUpright, image.size());
  cv.invertAffineTransform(toUpright, back);
  const [a, b, c, d, e, f] = back.data64F;
  return { image: turned, turnBack: ([x, y]) => [a * x + b * y + c, d * x + e * y + f] };
}

// Returns the evidence that a box holds a face, or 0 if it is rejected: the detections that agree, plus the network's
// score. A face has about 85, a blurred one about 40.
export async function faceEvidence(gray, box, detector, options = {}) {
  const place = searchFace(gray, box, detector.frontal, NEW_NEIGHBORS, options);
  if (!place) return 0;
  const [crop] = cropFaces(gray, [place.box], [options.angle ?? 0]);
  const score = await detector.model.faceScore(crop);
  const isSure = score > SURE_SCORE || place.agreeing >= SURE_NEIGHBORS;
  const isConfirmed = () => searchFace(gray, box, detector.confirming, CONFIRMING_NEIGHBORS, options);
  const isFace = score > LEAST_SCORE && (isSure || isConfirmed());
  return isFace ? place.agreeing + roundHalfToEven(SCORE_EVIDENCE * score) : 0;
}

// Searches the surroundings of a box for a face of about its size.
//
//     neighbors: number of detections that have to agree.
//     angle: degrees by which the face is tilted clockwise.
//     flipped: search the horizontally flipped image.
//     faceWidth: pixels to which the box is reduced or enlarged.
//     sizes: the smallest and the largest face, in widths of the box.
//     step: ratio of successive sizes.
//     tone: Uint8Array (256), the new value of each gray level; null leaves them as they are.
//
// Returns { box, agreeing }: the face near the middle on which most detections agree, and their number; else null.
export function searchFace(gray, box, cascade, neighbors, options = {}) {
  const { angle = 0, flipped = false, faceWidth = SEARCH_WIDTH } = options;
  const { sizes = SEARCH_SIZES, step = SEARCH_STEP, tone = TONE } = options;
  const size = Math.round(faceWidth * (1 + 2 * SEARCH_MARGIN));
  const patch = cutSquare(gray, box, size, { margin: SEARCH_MARGIN, angle });
  if (flipped) cv.flip(patch, patch, 1);
  applyTone(patch, tone);
  const [smallest, largest] = sizes.map((share) => Math.round(share * faceWidth));
  let best = null;
  for (const { box: [x, y, width], agreeing } of detectMultiScale(cascade, patch, step, neighbors, smallest, largest)) {
    const offset = [x + (width - size) / 2, y + (width - size) / 2]; // From the middle of the patch, in its pixels.
    const score = agreeing * (1 - Math.hypot(...offset) / faceWidth);
    if (!best || score > best.score) best = { score, offset, width, agreeing };
  }
  if (!best) return null;
  const [x, y, width] = [...best.offset, best.width].map((side) => side * box[2] / faceWidth);
  const moved = rotate([flipped ? -x : x, y], angle);
  const corner = [0, 1].map((axis) => box[axis] + box[axis + 2] / 2 + moved[axis] - width / 2);
  return { box: [...corner, width, width], agreeing: best.agreeing };
}

// Runs a cascade. Returns a list of { box, agreeing }: what it finds, and the number of detections that agree on it.
export function detectMultiScale(cascade, image, scaleFactor, neighbors, smallest, largest = 0) {
  const [found, counts] = [temporary(new cv.RectVector()), temporary(new cv.IntVector())];
  const [minSize, maxSize] = [new cv.Size(smallest, smallest), new cv.Size(largest, largest)];
  cascade.detectMultiScale2(image, found, counts, scaleFactor, neighbors, 0, minSize, maxSize);
  return Array.from({ length: found.size() }, (_, i) => {
    const { x, y, width, height } = found.get(i);
    return { box: [x, y, width, height], agreeing: counts.get(i) };
  });
}

// Returns an offset [x, y] after a rotation by an angle in degrees, clockwise.
export function rotate([x, y], angle) {
  const [cosine, sine] = [Math.cos(angle * Math.PI / 180), Math.sin(angle * Math.PI / 180)];
  return [cosine * x - sine * y, sine * x + cosine * y];
}

// Cuts the square around a box out of a frame, cv.Mat (size, size); the frame's edge is repeated beyond it.
//
//     margin: kept around the box on each side, in widths of the box.
//     angle: degrees by which the box's content is tilted clockwise; it is turned upright.
//     exact: average over the area of each pixel of the result. This is sharper and slower.
export function cutSquare(gray, [x, y, width, height], size, { margin = 0, angle = 0, exact = false } = {}) {
  const [centerX, centerY] = [x + width / 2, y + height / 2];
  const side = Math.max(width, height, 1) * (1 + 2 * margin);
  const reach = angle ? side * 0.75 : side / 2; // Half a diagonal, and a little for the interpolation.
  const [left, columns] = cutSpan(centerX, reach, gray.cols);
  const [top, rows] = cutSpan(centerY, reach, gray.rows);
  let region = temporary(gray.roi(new cv.Rect(left, top, columns, rows)));
  let reduction = Math.max(1, exact ? side / size : Math.trunc(side / size));
  if (reduction > 1 && Math.min(rows, columns) >= reduction) {
    // Averaging over areas first keeps a large face from aliasing.
    const reduced = temporary(new cv.Mat());
    cv.resize(region, reduced, new cv.Size(0, 0), 1 / reduction, 1 / reduction, cv.INTER_AREA);
    region = reduced;
  } else {
    reduction = 1;
  }
  const center = new cv.Point((centerX - left) / reduction - 0.5, (centerY - top) / reduction - 0.5);
  const toSquare = temporary(cv.getRotationMatrix2D(center, angle, size / side * reduction));
  toSquare.data64F[2] += (size - 1) / 2 - center.x;
  toSquare.data64F[5] += (size - 1) / 2 - center.y;
  const square = temporary(new cv.Mat());
  cv.warpAffine(region, square, toSquare, new cv.Size(size, size), cv.INTER_LINEAR, cv.BORDER_REPLICATE);
  return square;
}

// Returns the first pixel and the length of the part of a frame's side that lies around a center, at least one pixel.
function cutSpan(center, reach, length) {
  const first = Math.trunc(Math.min(Math.max(center - reach, 0), length - 1));
  const end = Math.min(Math.max(first + 1, Math.trunc(center + reach) + 2), length);
  return [first, end - first];
}

// Returns whether a box overlaps another one so much that they belong to the same face.
export function overlapsAny(box, others) {
  return others.some((other) => overlap(box, other) >= MIN_OVERLAP);
}

// Returns the intersection of two boxes over the smaller one, 0..1: 1 where one lies within the other.
function overlap(box, other) {
  const [width, height] = [0, 1].map(
    (side) => Math.min(box[side] + box[side + 2], other[side] + other[side + 2]) - Math.max(box[side], other[side]),
  );
  return Math.max(0, width) * Math.max(0, height) / Math.min(box[2] * box[3], other[2] * other[3]);
}

// Cuts faces out of a frame. Returns a Uint8Array (2304) for each box.
export function cropFaces(gray, boxes, angles = boxes.map(() => 0)) {
  return boxes.map((box, i) => cutSquare(gray, box, IMAGE_SIZE, { angle: angles[i], exact: true }).data.slice());
}

// Orders boxes by x, y, width, as Python orders tuples.
function compareBoxes(box, other) {
  return box[0] - other[0] || box[1] - other[1] || box[2] - other[2];
}

// Orders faces by the width of their boxes, the largest first.
function compareSizes({ box }, { box: other }) {
  return other[2] - box[2] || compareBoxes(box, other);
}

export function mean(numbers) {
  return numbers.reduce((total, number) => total + number, 0) / numbers.length;
}

export function standardDeviation(numbers) {
  const average = mean(numbers);
  return Math.sqrt(numbers.reduce((total, number) => total + (number - average) ** 2, 0) / numbers.length);
}

// Returns how alike two thumbnails are, -1..1, whatever their brightness and contrast.
export function similarity(thumbnail, other) {
  const deviations = [thumbnail, other].map(standardDeviation);
  if (Math.min(...deviations) < 1) return 0; // A plain image matches nothing.
  const levels = center(other);
  return mean(center(thumbnail).map((level, i) => level * levels[i])) / (deviations[0] * deviations[1]);
}

// Returns gray levels less their mean.
export function center(image) {
  const average = mean(image);
  return Float64Array.from(image, (level) => level - average);
}

// Rounds as Python does.
export function roundHalfToEven(number) {
  const rounded = Math.round(number);
  return rounded - number === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// 3. Faces -> probabilities -------------------------------------------------------------------------------------------

// The exported network of a model folder, run by LiteRT one face at a time.
export class EmotionModel {
  constructor(network, description, litert) {
    Object.assign(this, { network, litert });
    this.classes = description.classes;
    this.head = description.heads.includes("votes") ? "votes" : "labels";
    this.temperature = description.temperatures[this.head];
    this.bias = description.bias;
  }

  // Returns one of the network's outputs, Float32Array, for a face; that of the demo's head by default.
  async logits(face, output = this.head) {
    const faces = new this.litert.Tensor(Float32Array.from(face), [1, IMAGE_SIZE, IMAGE_SIZE, 1]);
    const outputs = await this.network.run({ faces });
    const logits = outputs[output].toTypedArray();
    for (const tensor of [faces, ...Object.values(outputs)]) tensor.delete();
    return logits;
  }

  // Returns the probability that a window holds a face.
  async faceScore(window) {
    return 1 / (1 + Math.exp(-(await this.logits(window, "face"))[0]));
  }

  // Returns the probabilities of each face.
  async predict(faces) {
    const probabilities = [];
    for (const face of faces) {
      const logits = await this.logits(face);
      probabilities.push(softmax(this.bias.map((bias, i) => logits[i] / this.temperature + bias)));
    }
    return probabilities;
  }
}

export function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, exponential) => total + exponential, 0);
  return exponentials.map((exponential) => exponential / sum);
}

// Loads `model.json` and `model.tflite` from a folder, and LiteRT from another.
export async function loadEmotionModel(folder, litertFolder) {
  const description = JSON.parse(new TextDecoder().decode(await fetchBytes(`${folder}model.json`)));
  const content = await fetchBytes(`${folder}model.tflite`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const hexadecimal = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hexadecimal !== description.tflite_sha256) throw new Error("model.tflite does not match model.json.");
  const litert = await loadLiteRT(litertFolder);
  const network = await litert.loadAndCompile(fixBatchSize(content), { accelerator: "wasm" });
  return new EmotionModel(network, description, litert);
}

async function loadLiteRT(folder) {
  // Otherwise LiteRT would start the discrete graphics card, although this network runs on the CPU.
  if (navigator.gpu) Object.defineProperty(navigator, "gpu", { value: undefined });
  // LiteRT looks for its files next to the worker, and logs its progress as errors.
  self.Module = { locateFile: (file) => folder + file, printErr() {} };
  const litert = await import(`${folder}litert.js`);
  await litert.loadLiteRt(folder);
  return litert;
}

// Sets the batch size in the shapes of a network's input to 1, because LiteRT refuses -1, any number, in a browser.
function fixBatchSize(content) {
  const [view, shape] = [new DataView(content.buffer), [4, -1, IMAGE_SIZE, IMAGE_SIZE, 1]]; // Length, then sides.
  for (let at = 0; at + 20 <= view.byteLength; at += 4) {
    if (shape.every((side, i) => view.getInt32(at + 4 * i, true) === side)) view.setInt32(at + 4, 1, true);
  }
  return content;
}

// 4. Probabilities -> drawing -----------------------------------------------------------------------------------------

// Returns the label and the confidence of each face: the most probable emotion, or UNCERTAIN below `minConfidence`.
export function chooseLabels(probabilities, classes, minConfidence = 0) {
  return probabilities.map((row) => {
    const confidence = Math.max(...row);
    return { label: confidence >= minConfidence ? classes[row.indexOf(confidence)] : UNCERTAIN, confidence };
  });
}

// Draws a box, a label and a confidence for every face. A face that was not found in this frame gets a dashed box and
// no confidence. Numbers are drawn when there are several faces.
//
//     scale: pixels of the canvas per pixel of the frame.
//     size: height of the letters in pixels of the canvas.
export function annotateFrame(context, faces, scale, size) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.lineWidth = size / 5;
  for (const { box, angle, label, confidence, held, track } of faces) {
    const [x, y, width, height] = box.map((length) => length * scale);
    const color = colorOf(label);
    context.save();
    context.translate(x + width / 2, y + height / 2);
    context.rotate(angle * Math.PI / 180);
    context.strokeStyle = `rgb(${color})`;
    context.setLineDash(held ? [size / 2, size / 2] : []);
    context.strokeRect(-width / 2, -height / 2, width, height);
    context.restore();
    const [cosine, sine] = rotate([1, 0], angle).map(Math.abs);
    const top = y + (height - sine * width - cosine * height) / 2; // Of the tilted box.
    const texts = [[held ? label : `${label} ${percent(confidence)}`, color]];
    if (faces.length > 1) texts.unshift([String(track), DARK]);
    putTexts(context, texts, [x, top], size);
  }
}

// Writes texts, a list of [text, color], on bars in a row above a corner [x, y], or as near as the canvas allows.
function putTexts(context, texts, corner, size) {
  const widths = texts.map(([text]) => context.measureText(text).width + size * 0.8), height = size * 1.5;
  const width = widths.reduce((total, one) => total + one, 0);
  let x = Math.max(0, Math.min(corner[0] - context.lineWidth / 2, context.canvas.width - width));
  const top = Math.max(0, corner[1] - height);
  context.textBaseline = "middle";
  texts.forEach(([text, color], i) => {
    context.fillStyle = `rgb(${color})`;
    context.fillRect(x, top, widths[i] + 0.5, height); // Without a gap between two bars.
    context.fillStyle = inkOn(color);
    context.fillText(text, x + size * 0.4, top + height / 2);
    x += widths[i];
  });
}

// Returns the color of a label, RGB.
export function colorOf(label) {
  return EMOTION_COLORS[label] ?? UNCERTAIN_COLOR;
}

// Returns black or white, whichever is easier to read on a color.
export function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 100 ? "black" : "white";
}

export function percent(share) {
  return `${Math.round(100 * share)}%`;
}
