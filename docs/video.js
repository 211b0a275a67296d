// Frames in: from a camera, a video or a picture.
//
// A source is { still, live, next, close }. Its `next` returns the next frame as { image, time, scale }: an
// ImageBitmap, seconds, and by how much the image was reduced. At the end it returns null. A camera also has a
// `deviceId`, and is `mirrored` if it faces the user. A video also has `isDamaged`. The `signal` of an AbortController
// stops opening a source, and closes a video.

const MOVING_PIXELS = 1280 * 720, STILL_PIXELS = 4096 * 3072; // Larger frames are reduced to this.

// Opens a camera by its id. If the id is empty, the browser chooses.
export async function openCamera(deviceId, signal) {
  if (!navigator.mediaDevices) throw new Error("Browsers open a camera only for pages on https:// or localhost.");
  const video = { width: { ideal: 640 }, height: { ideal: 480 }, ...(deviceId && { deviceId: { exact: deviceId } }) };
  const stream = await navigator.mediaDevices.getUserMedia({ video });
  const [track] = stream.getVideoTracks();
  const source = await openVideo({ srcObject: stream }, signal, () => track.stop());
  track.onended = source.end; // The camera was disconnected.
  const { deviceId: id, facingMode } = track.getSettings();
  return { ...source, deviceId: id, mirrored: facingMode !== "environment" };
}

// Opens a file that the user chose.
export async function openFile(file, signal) {
  // Trying a large video as an image would read it into memory first.
  const image = file.type.startsWith("video/") ? null : await createImageBitmap(file).catch(() => null);
  if (image) return openImage(image);
  const src = URL.createObjectURL(file);
  try {
    return await openVideo({ src }, signal, () => URL.revokeObjectURL(src));
  } catch {
    const advice = "Choose another file, for example a JPEG or an MP4.";
    throw new Error(`${file.name}: this browser cannot open it as a picture or video. ${advice}`);
  }
}

function openImage(image) {
  const frames = [image];
  const next = async () => (frames.length ? { ...await reduce(frames.pop(), STILL_PIXELS), time: 0 } : null);
  return { still: true, live: false, next, close: () => image.close() };
}

// Plays a video. `next` waits for a new frame and returns the newest one.
export async function openVideo(content, signal, release = () => {}) {
  const element = Object.assign(document.createElement("video"), { muted: true, playsInline: true, ...content });
  document.body.append(element); // Some phones decode only videos in the page. style.css makes it invisible.
  const live = Boolean(element.srcObject), begun = performance.now();
  let newest = null, taken = null, ended = false, damaged = false, wake = () => {};
  const present = (now, { mediaTime }) => {
    newest = live ? (now - begun) / 1000 : mediaTime;
    wake();
    request();
  };
  const request = () => {
    if (element.requestVideoFrameCallback) element.requestVideoFrameCallback(present);
    else if (!ended) requestAnimationFrame((now) => present(now, { mediaTime: element.currentTime }));
  };
  const end = () => {
    ended = true;
    wake();
  };
  const next = async () => {
    while (newest === taken && !ended) await new Promise((resolve) => { wake = resolve; });
    if (newest === taken) return null;
    taken = newest;
    return { ...await reduce(element, MOVING_PIXELS), time: taken };
  };
  const close = () => {
    end();
    element.pause();
    element.remove();
    release();
  };
  const play = async () => {
    signal.throwIfAborted();
    await element.play().catch(async (error) => {
      if (error.name !== "AbortError" || !document.hidden) throw error;
      // A hidden tab cannot play. Try again when the tab is shown.
      await new Promise((resolve) => { document.addEventListener("visibilitychange", resolve, { once: true }); });
      await play();
    });
  };
  element.onended = end;
  element.onerror = () => {
    damaged = true;
    end();
  };
  signal.addEventListener("abort", close, { once: true });
  request();
  try {
    await play();
    if (!element.videoWidth) throw new Error("There is only sound in it.");
    if (!live && await isTurned(element)) throw new Error("Firefox does not turn its frames.");
  } catch (error) {
    close();
    throw error;
  }
  return { still: false, live, next, end, close, isDamaged: () => damaged };
}

// Returns whether the frames of a portrait video come in landscape format, or the other way round.
async function isTurned(video) {
  const frame = await createImageBitmap(video), isLandscape = frame.width > frame.height;
  frame.close();
  return isLandscape !== video.videoWidth > video.videoHeight;
}

// Returns an image, or the current frame of a video, as an ImageBitmap of at most `pixels` pixels, and its scale.
async function reduce(picture, pixels) {
  const [width, height] = [picture.videoWidth ?? picture.width, picture.videoHeight ?? picture.height];
  const scale = Math.min(1, Math.sqrt(pixels / (width * height)));
  const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.round(side * scale));
  const options = scale < 1 ? { resizeWidth, resizeHeight, resizeQuality: "high" } : {};
  return { image: await createImageBitmap(picture, options), scale };
}
