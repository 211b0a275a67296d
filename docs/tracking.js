// Faces over time: a small tracking.py for the browser, without profiles.
//
// A known face is searched for near its expected place, which takes a millisecond or two. Now and then a scan of the
// reduced frame proposes new places, and a second cascade confirms the faces among them.

import {
  CONFIRMING_NEIGHBORS, cutSquare, cv, detectFaces, detectMultiScale, overlapsAny, rotate, searchFace, temporary,
} from "./faces.js";

// The scan.
const SCAN_LINES = 240; // of the shorter side; a smaller frame is scanned as it is
const SCAN_SECONDS = 0.25; // between two scans while a face is shown; without one every frame is scanned
const WINDOW = 24, SIZE_STEP = 1.2; // pixels of the smallest face that the cascades find, step of the sizes
const SIMILAR = 1.5; // Two places that overlap are the same one if their sizes differ less.
const TILT = 25, MAX_TILT = 50; // degrees: step and limit of the search; the cascades tolerate 15 by themselves
const SCAN_ANGLES = [-TILT, TILT]; // in turn, besides the upright one and only while no face is shown

// Known faces.
const KNOWN = { faceWidth: 48, sizes: [0.8, 1.25] }, KNOWN_NEIGHBORS = 2; // see searchFace
const HOLD = 0.3; // seconds that a face is shown while missed, if the image there looks like it
const MEMORY = 1.2; // seconds that a lost face is searched for where it should be
const LOST_PEOPLE = 20; // faces whose thumbnails are kept after that
const POSITION_GAIN = 0.6, VELOCITY_GAIN = 0.15; // of the alpha-beta filter that smooths a face's path
const SMOOTHING = 0.4; // seconds: time constant of the average over a face's probabilities
const CUT = 25; // gray levels: mean change of a 32x18 thumbnail that makes a frame the first of another scene

// New faces.
const NEW_NEIGHBORS = 5; // detections that have to agree
const SHOWN_EVIDENCE = 10, TRUSTED_EVIDENCE = 30; // detections of the confirming cascade, summed over frames
const MAX_FAILURES = 3; // confirmations in a row that fail before a new face is forgotten
const MIN_HITS = 3; // frames in which a tilted face must be found before it is shown

// Correlations of two thumbnails, -1..1.
const THUMBNAIL = 24; // pixels
const ALIKE_HELD = 0.6; // A held face's place looks like the face.
const ALIKE_TILTED = 0.4; // What is found at a larger angle is still this face.
const ALIKE_PERSON = 0.8; // A new face is a person who was lost.

// One face: where it is now, and what is known of it.
class Track {
  constructor(toned, box, angle, time) {
    Object.assign(this, { box, angle, time, seen: time, velocity: [0, 0] }); // seen: when the face was last found
    this.thumbnail = cutThumbnail(toned, box, angle);
    this.trackId = 0; // from 1, given when the face is first shown
    this.held = false; // The cascades miss the face, but its place looks like it.
    this.hits = 1; // frames in which it was found
    this.evidence = this.failures = 0;
    this.probabilities = this.averaged = null; // averaged: when they last took in new ones
  }

  get present() {
    return this.held || this.seen === this.time; // In the frame.
  }

  get shown() {
    const isKnown = this.evidence >= SHOWN_EVIDENCE && (this.angle === 0 || this.hits >= MIN_HITS);
    return this.present && (isKnown || this.trackId > 0);
  }

  // Moves the track to where its face was found, smoothed by an alpha-beta filter.
  move(box, angle) {
    const residual = box.map((side, i) => side - this.box[i]), seconds = Math.max(this.time - this.seen, 1e-3);
    this.box = this.box.map((side, i) => side + POSITION_GAIN * residual[i]);
    this.velocity = this.velocity.map((speed, axis) => speed + VELOCITY_GAIN * residual[axis] / seconds);
    Object.assign(this, { angle, seen: this.time, hits: this.hits + 1 });
  }

  // Averages the probabilities of a frame with those of earlier ones, exponentially, so that no label flickers.
  average(probabilities, time) {
    if (this.held && this.probabilities) return this.probabilities; // A held face may be half hidden.
    const weight = 1 - Math.exp((this.averaged - time) / SMOOTHING), former = this.probabilities ?? probabilities;
    this.probabilities = probabilities.map((share, i) => former[i] + weight * (share - former[i]));
    this.averaged = time;
    return this.probabilities;
  }
}

// Follows the faces of a camera or video. `still`: the frames are unrelated images.
export class FaceTracker {
  constructor(detector, still = false) {
    Object.assign(this, { detector, still, tracks: [], lost: [], count: 0, scans: 0, scanned: -Infinity, scene: null });
  }

  // Returns the tracks of the faces in the next frame, in the order of their numbers. `time`: seconds.
  find(toned, time) {
    if (this.still) this.findStill(toned, time);
    else this.findMoving(toned, time);
    const shown = this.tracks.filter((track) => track.shown);
    for (const track of shown) if (!track.trackId) this.giveTrackId(track);
    return shown.sort((a, b) => a.trackId - b.trackId);
  }

  // Moves what is known to the other side: from now on the frames, this wide in pixels, are mirrored.
  mirror(width) {
    this.scene = null;
    for (const track of [...this.tracks, ...this.lost]) {
      track.box[0] = width - track.box[0] - track.box[2];
      track.velocity[0] *= -1;
      track.angle *= -1;
      track.thumbnail = track.thumbnail.map((_, i) => track.thumbnail[i - 2 * (i % THUMBNAIL) + THUMBNAIL - 1]);
    }
  }

  // Finds the faces of an image; tilted heads only where no face is upright.
  findStill(toned, time) {
    this.tracks = detectFaces(toned, this.detector).map((box) => new Track(toned, box, 0, time));
    for (const track of this.tracks) track.evidence = SHOWN_EVIDENCE;
    if (this.tracks.length) return;
    for (const angle of SCAN_ANGLES) this.findNew(toned, time, angle);
    for (const track of this.tracks) track.hits = MIN_HITS; // There are no further frames.
  }

  // Updates the tracks by the next frame of a camera or video.
  findMoving(toned, time) {
    if (this.isCut(toned)) this.forget(this.tracks);
    this.follow(toned, time);
    this.forget(this.tracks.filter((track) => time - track.seen > MEMORY));
    const shows = this.tracks.some((track) => track.shown);
    if (shows && time - this.scanned < SCAN_SECONDS) return;
    this.scanned = time;
    this.findNew(toned, time, 0);
    if (!this.tracks.some((track) => track.shown)) this.findNew(toned, time, SCAN_ANGLES[this.scans++ % 2]);
  }

  // Returns whether a frame belongs to another scene than the one before.
  isCut(toned) {
    const small = temporary(new cv.Mat());
    cv.resize(toned, small, new cv.Size(32, 18), 0, 0, cv.INTER_AREA);
    const scene = normalize(small.data).levels; // A change of brightness is not a cut.
    const change = this.scene ? mean(scene.map((level, i) => Math.abs(level - this.scene[i]))) : 0;
    this.scene = scene;
    return change > CUT;
  }

  // Stops following these tracks, and keeps the people among them to recognize them.
  forget(tracks) {
    this.tracks = this.tracks.filter((track) => !tracks.includes(track));
    this.lost = [...tracks.filter((track) => track.trackId), ...this.lost].slice(0, LOST_PEOPLE);
  }

  // Moves each track to where its face is in this frame.
  follow(toned, time) {
    for (const track of this.tracks) {
      for (const axis of [0, 1]) track.box[axis] += track.velocity[axis] * (time - track.time);
      track.time = time;
    }
    const finds = this.tracks.map((track) => this.searchKnown(toned, track)).filter(Boolean);
    // Where one face covers another, both tracks find the one in front: it belongs to the track it looks like.
    const taken = [];
    for (const { track, box, angle, thumbnail } of finds.sort((a, b) => b.alike - a.alike)) {
      if (overlapsAny(box, taken)) continue;
      track.move(box, angle);
      taken.push(track.box);
      if (isWithin(box, toned)) track.thumbnail = thumbnail; // Half a face does not help to recognize a person.
      this.confirm(toned, track);
    }
    this.tracks = this.tracks.filter((track) => track.failures < MAX_FAILURES);
    for (const track of this.tracks) {
      const [x, y, width, height] = track.box, missed = time - track.seen;
      const isFree = isWithin([x + width / 2, y + height / 2, 0, 0], toned) && !overlapsAny(track.box, taken);
      track.held = missed > 0 && missed <= HOLD && isFree
        && correlation(cutThumbnail(toned, track.box, track.angle), track.thumbnail) >= ALIKE_HELD;
    }
  }

  // Searches for a known face at its angle and at those next to it, the least tilted first: a face that looks upright
  // is upright. Returns what was found, or undefined.
  searchKnown(toned, track) {
    const angles = [track.angle, track.angle - TILT, track.angle + TILT].filter((angle) => Math.abs(angle) <= MAX_TILT);
    for (const angle of angles.sort((a, b) => Math.abs(a) - Math.abs(b))) {
      const [neighbors, options] = angle === track.angle ? [KNOWN_NEIGHBORS, KNOWN] : [NEW_NEIGHBORS, {}];
      const found = searchFace(toned, track.box, this.detector.frontal, neighbors, { ...options, angle });
      if (!found) continue;
      const thumbnail = cutThumbnail(toned, found.box, angle);
      const alike = correlation(thumbnail, track.thumbnail);
      const isFurther = Math.abs(angle) > Math.abs(track.angle); // There a shoulder or a sleeve can pass for a face.
      if (!isFurther || alike >= ALIKE_TILTED) return { alike, track, box: found.box, angle, thumbnail };
    }
  }

  // Collects evidence that a new track is a face; what is not a face passes now and then, but not each time.
  confirm(toned, track) {
    if (track.evidence >= TRUSTED_EVIDENCE) return;
    const found = searchFace(toned, track.box, this.detector.confirming, CONFIRMING_NEIGHBORS, { angle: track.angle });
    track.evidence += found?.agreeing ?? 0;
    track.failures = found ? 0 : track.failures + 1;
  }

  // Begins a track where a scan proposes a face, if two cascades find it and no face is followed there.
  findNew(toned, time, angle) {
    for (const place of scan(toned, this.detector.frontal, angle)) {
      const present = this.tracks.filter((track) => track.present).map((track) => track.box);
      if (overlapsAny(place, present)) continue;
      const found = searchFace(toned, place, this.detector.frontal, NEW_NEIGHBORS, { angle });
      if (!found || overlapsAny(found.box, present)) continue;
      const track = new Track(toned, found.box, angle, time);
      this.confirm(toned, track);
      if (!track.failures) this.tracks.push(track);
    }
  }

  // Gives a face that is shown for the first time the number of a lost person it looks like, or a new one.
  giveTrackId(track) {
    const gone = [...this.tracks.filter((old) => old.trackId && !old.shown), ...this.lost];
    const alike = gone.map((old) => correlation(old.thumbnail, track.thumbnail));
    const old = gone[alike.indexOf(Math.max(ALIKE_PERSON, ...alike))];
    const { trackId, probabilities, averaged } = old ?? { ...track, trackId: ++this.count };
    Object.assign(track, { trackId, probabilities, averaged });
    [this.tracks, this.lost] = [this.tracks, this.lost].map((list) => list.filter((other) => other !== old));
  }
}

// Returns the boxes of places that may be a face tilted by an angle, in pixels of the frame.
function scan(toned, cascade, angle) {
  const reduction = Math.min(1, SCAN_LINES / Math.min(toned.rows, toned.cols));
  const reduced = temporary(new cv.Mat()), upright = temporary(new cv.Mat());
  cv.resize(toned, reduced, new cv.Size(0, 0), reduction, reduction, cv.INTER_AREA);
  const center = new cv.Point(reduced.cols / 2, reduced.rows / 2);
  cv.warpAffine(reduced, upright, temporary(cv.getRotationMatrix2D(center, angle, 1)), reduced.size());
  const places = [];
  // 0 neighbors find a quarter more faces than 2, at the cost of two more searches per scan.
  const found = detectMultiScale(cascade, upright, SIZE_STEP, 0, WINDOW).map(({ box }) => box);
  for (const [left, top, width] of found.sort((a, b) => b[2] - a[2])) {
    const [x, y] = rotate([left + width / 2 - center.x, top + width / 2 - center.y], angle);
    const box = [center.x + x - width / 2, center.y + y - width / 2, width, width].map((side) => side / reduction);
    if (!overlapsAny(box, places.filter((other) => other[2] < SIMILAR * box[2]))) places.push(box);
  }
  return places;
}

// Returns a face as Uint8Array (576), turned upright.
const cutThumbnail = (toned, box, angle) => cutSquare(toned, box, THUMBNAIL, { angle }).data.slice();

const isWithin = ([x, y, width, height], { cols, rows }) => Math.min(x, y, cols - x - width, rows - y - height) >= 0;

// Returns how alike two thumbnails are, -1..1, whatever their brightness and contrast.
function correlation(thumbnail, other) {
  const [a, b] = [normalize(thumbnail), normalize(other)];
  if (Math.min(a.deviation, b.deviation) < 1) return 0; // A plain image looks like nothing.
  return mean(a.levels.map((level, i) => level * b.levels[i])) / (a.deviation * b.deviation);
}

// Returns gray levels less their mean, and their standard deviation.
function normalize(image) {
  const average = mean(image);
  const levels = Float64Array.from(image, (level) => level - average);
  return { levels, deviation: Math.sqrt(mean(levels.map((level) => level * level))) };
}

const mean = (numbers) => numbers.reduce((total, number) => total + number, 0) / numbers.length;
