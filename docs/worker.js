// Finds and labels the faces of frames, away from the page, which stays responsive.
//
// In:  { image: ImageBitmap, time: seconds, source: number, still, mirrored } for each frame
// Out: { progress: 0..1 } while it loads, then { classes } or { failure };
//      { image, faces, milliseconds } or { error } for each frame
//
// LiteRT needs importScripts, so this is a classic worker that imports modules.

const LITERT = new URL("vendor/litert/", self.location).href;
const OPENCV = new URL("vendor/opencv/", self.location).href;
const MODEL = new URL("vendor/model/", self.location).href;
const MIN_CONFIDENCE = 0.5; // As in webcam_demo.py: below it a face is uncertain.

const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext("2d", { willReadFrequently: true }); // In memory: its pixels are read each frame.
let faces, tracking, model, detector, tracker, source, mirrored;

// A module with a SIMD instruction, which an old browser refuses.
const SIMD = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
);

async function load() {
  if (!self.isSecureContext) throw new Error("The address must begin with https:// or http://localhost.");
  if (!self.WebAssembly?.validate(SIMD)) throw new Error("This browser has no WebAssembly SIMD. Use a current one.");
  let done = 0;
  const step = (promise) => promise.then((value) => {
    done += 1;
    self.postMessage({ progress: done / 5 });
    return value;
  });
  [faces, tracking] = await step(Promise.all([import("./faces.js"), import("./tracking.js")]));
  const loadDetector = async () => {
    await step(faces.loadOpenCV(OPENCV));
    return step(faces.loadFaceDetector(OPENCV));
  };
  [model, detector] = await Promise.all([step(faces.loadEmotionModel(MODEL, LITERT)), loadDetector()]);
  detector.model = model; // It confirms new faces.
  await step(model.predict([new Uint8Array(faces.IMAGE_SIZE ** 2)])); // The first run takes longer.
  self.postMessage({ classes: model.classes });
}

// Returns the pixels of an image as ImageData, flipped horizontally if `mirrored`.
function readPixels(image) {
  Object.assign(canvas, { width: image.width, height: image.height }); // This also resets the context.
  if (mirrored) context.setTransform(-1, 0, 0, 1, image.width, 0);
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

async function label(frame) {
  const started = performance.now();
  if (frame.source !== source || frame.mirrored !== mirrored) {
    tracker = new tracking.FaceTracker(detector, frame.still, frame.source === source ? tracker.count : 0);
  }
  ({ source, mirrored } = frame);
  const { cv } = faces;
  const rgba = faces.temporary(cv.matFromImageData(readPixels(frame.image)));
  const gray = faces.temporary(new cv.Mat());
  cv.cvtColor(rgba, gray, cv.COLOR_RGBA2GRAY);
  const tracks = await tracker.find(gray, frame.time);
  const boxes = tracks.map((track) => track.box.map(faces.roundHalfToEven));
  const angles = tracks.map((track) => track.angle);
  const crops = faces.cropFaces(gray, boxes, angles);
  const predictions = await model.predict(crops);
  const probabilities = tracks.map((track, i) => track.average(predictions[i], frame.time));
  const labels = faces.chooseLabels(probabilities, model.classes, MIN_CONFIDENCE);
  return {
    faces: tracks.map(({ trackId, angle, held }, i) => (
      { track: trackId, box: boxes[i], ...labels[i], probabilities: probabilities[i], angle, held, crop: crops[i] }
    )),
    milliseconds: performance.now() - started,
  };
}

const ready = load();
ready.catch((error) => self.postMessage({ failure: error.message }));

let last = ready; // Each frame waits for the one before.

self.onmessage = ({ data: frame }) => {
  last = last.then(() => label(frame)).finally(() => faces?.releaseTemporaries()).then(
    (result) => self.postMessage({ image: frame.image, ...result }, [frame.image]), // The page draws this very frame.
    (error) => self.postMessage({ error: error.message ?? String(error) }),
  );
};
