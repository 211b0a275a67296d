// Faces over time: a small tracking.py for the browser, without profiles.
//
// A known face is searched for near its expected place, which takes a millisecond or two. Now and then it is searched
// for carefully. A scan of the reduced frame proposes candidates, which faceEvidence confirms.

import {
  NEW_NEIGHBORS, TONE, applyTone, center, cutSquare, cv, detectMultiScale, faceEvidence, findFaces, mean,
  overlapsAny, searchFace, similarity, temporary, turnUpright,
} from "./faces.js";

// The scan.
const SCAN_LINES = 240; // pixels to which the shorter side is reduced; a smaller frame is scanned as it is
const SCAN_INTERVAL = 0.25; // seconds between two scans while a face is shown; otherwise every frame is scanned
const MIN_SIZE = 24, SIZE_STEP = 1.2; // pixels of the smallest face that the cascades find, ratio of successive sizes
const SAME_PLACE = 1.5; // ratio of sizes below which two places that overlap are the same one

// Known faces.
const KNOWN = { sizes: [0.75, 1.25], step: 1.2 }; // see searchFace
const KNOWN_NEIGHBORS = 2; // detections that have to agree
const CHECK_INTERVAL = 0.2; // seconds between careful searches for an upright face; a tilted one is checked always
const CHECK_SIZES = [0.6, 1.35]; // A box at a wrong angle may have become too large.
const SETTLED = 0.05; // widths of the box: a search that moves and resizes it by less has confirmed it
const MAX_UNCHECKED = 1.0; // seconds that a face is followed while the careful searches miss it
const TILT = 25, MAX_TILT = 50; // degrees: step and limit of the search; the cascades tolerate 15 by themselves
const MIN_ELAPSED = 1 / 60; // least seconds between two frames; shorter times would give absurd velocities
const MAX_GROWTH = 3; // factor per second by which a face grows or shrinks, as when a head comes near
const HOLD = 0.3; // seconds that a face is shown while missed, if the image there looks like it
const MEMORY = 1.2; // seconds that a lost face is searched for where it should be
const LOST_PEOPLE = 20; // faces whose thumbnails are kept after that, to recognize them
const POSITION_GAIN = 0.6, VELOCITY_GAIN = 0.15; // of the alpha-beta filter that smooths a face's path
const SMOOTHING = 0.4; // seconds: time constant of the average over a face's probabilities
const CUT = 25; // gray levels: mean change of a 32x18 thumbnail that makes a frame the first of another scene

// New faces. Their evidence is the sum of faceEvidence over the frames.
const SHOWN_EVIDENCE = 30; // A face has about 85 in one frame, a blurred one about 40.
const TRUSTED_EVIDENCE = 200; // From here on, the face is no longer confirmed.
const MAX_REFUSALS = 3; // confirmations in a row that fail before a new face is forgotten
const MIN_HITS = 3; // frames in which a tilted face must be found before it is shown

// Similarity of two thumbnails: correlation, -1..1.
const THUMBNAIL = 24; // pixels
const HELD_SIMILARITY = 0.6; // A held face's place looks like the face.
const UNCHANGED_SIMILARITY = 0.96; // A face is where it is expected, and need not be searched for.
const SAME_SIMILARITY = 0.4; // What is found at another angle is still this face.
const PERSON_SIMILARITY = 0.8; // A new face is a person who was lost.

// One face: its current position, and what is known about it.
class Track {
  constructor(gray, box, angle, time) {
    Object.assign(this, { box, angle, time, seen: time, checked: time }); // when it was found, and found carefully
    this.thumbnail = cutThumbnail(gray, box, angle);
    this.velocity = [0, 0]; // pixels per second
    this.trackId = 0; // from 1, given when the face is first shown
    this.settled = false; // The last search found the face where the box was.
    this.held = false; // The cascades miss the face, but its place looks like it.
    this.hits = 1; // frames in which it was found
    this.evidence = this.refusals = 0;
    this.probabilities = this.averaged = null; // averaged: when they last took in new ones
  }

  get present() { return this.held || this.seen === this.time; }

  get shown() {
    const isKnown = this.evidence >= SHOWN_EVIDENCE && (this.angle === 0 || this.hits >= MIN_HITS);
    return this.present && (isKnown || this.trackId > 0);
  }

  // Moves the track to where its face was found, with an alpha-beta filter. A box at another angle is not smoothed.
  move(box, angle) {
    const elapsed = Math.max(this.time - this.seen, MIN_ELAPSED), growth = MAX_GROWTH ** elapsed;
    const residual = box.map((side, i) => side - this.box[i]), former = this.box[2];
    this.settled = !angle && !this.angle && Math.max(...residual.map(Math.abs)) < SETTLED * former;
    if (angle === this.angle) {
      const [x, y, wide] = this.box.map((side, i) => side + POSITION_GAIN * residual[i]);
      const width = Math.min(Math.max(wide, former / growth), former * growth), shift = (wide - width) / 2;
      box = [x + shift, y + shift, width, width];
    }
    for (const i of [0, 1]) this.velocity[i] += VELOCITY_GAIN * (residual[i] + residual[i + 2] / 2) / elapsed;
    Object.assign(this, { box, angle, seen: this.time, hits: this.hits + 1 });
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

// Follows the faces of a camera or video, and numbers them after `count`. `still`: the frames are unrelated images.
export class FaceTracker {
  constructor(detector, still = false, count = 0) {
    Object.assign(this, { detector, still, count, tracks: [], lost: [], scans: 0, scanned: -Infinity, scene: null });
  }

  // Returns the tracks of the faces in the next frame, in the order of their numbers. `time`: seconds.
  async find(gray, time) {
    await (this.still ? this.findStill : this.findMoving).call(this, gray, time);
    const shown = this.tracks.filter((track) => track.shown);
    for (const track of shown) if (!track.trackId) this.giveTrackId(track);
    return shown.sort((a, b) => a.trackId - b.trackId);
  }

  async findStill(gray, time) {
    const faces = await findFaces(gray, this.detector);
    this.tracks = faces.map(({ box, angle }) => new Track(gray, box, angle, time));
    for (const track of this.tracks) Object.assign(track, { evidence: SHOWN_EVIDENCE, hits: MIN_HITS });
  }

  async findMoving(gray, time) {
    if (this.isCut(gray)) this.forget(this.tracks);
    await this.follow(gray, time);
    this.forget(this.tracks.filter((track) => time - track.seen > MEMORY));
    const shows = () => this.tracks.some((track) => track.shown);
    if (shows() && time - this.scanned < SCAN_INTERVAL) return;
    this.scanned = time;
    await this.findNew(gray, time, 0);
    if (!shows()) await this.findNew(gray, time, this.scans++ % 2 ? TILT : -TILT);
  }

  // Returns whether a frame belongs to another scene than the one before.
  isCut(gray) {
    const small = temporary(new cv.Mat());
    cv.resize(gray, small, new cv.Size(32, 18), 0, 0, cv.INTER_AREA);
    const scene = center(small.data); // A change of brightness is not a cut.
    const change = this.scene ? mean(scene.map((level, i) => Math.abs(level - this.scene[i]))) : 0;
    this.scene = scene;
    return change > CUT;
  }

  // Stops following these tracks. Keeps those with a number, to recognize the people.
  forget(tracks) {
    this.tracks = this.tracks.filter((track) => !tracks.includes(track));
    this.lost = [...tracks.filter((track) => track.trackId), ...this.lost].slice(0, LOST_PEOPLE);
  }

  // Moves each track to where its face is in this frame.
  async follow(gray, time) {
    for (const track of this.tracks) {
      for (const axis of [0, 1]) track.box[axis] += track.velocity[axis] * (time - track.time);
      track.settled &&= track.seen === track.time;
      track.time = time;
    }
    const finds = [];
    for (const track of this.tracks) finds.push(await this.searchKnown(gray, track));
    // Where one face covers another, both tracks find the one in front. It goes to the track that it looks like.
    const taken = [];
    for (const { track, box, angle, thumbnail } of finds.filter(Boolean).sort((a, b) => b.alike - a.alike)) {
      if (overlapsAny(box, taken)) continue;
      track.move(box, angle);
      taken.push(track.box);
      if (isWithin(box, gray)) track.thumbnail = thumbnail; // Half a face does not help to recognize a person.
      await this.confirm(gray, track);
    }
    this.tracks = this.tracks.filter((track) => track.refusals < MAX_REFUSALS);
    for (const track of this.tracks) {
      const [x, y, width, height] = track.box, missed = time - track.seen;
      const isFree = isWithin([x + width / 2, y + height / 2, 0, 0], gray) && !overlapsAny(track.box, taken);
      track.held = missed > 0 && missed <= HOLD && isFree
        && similarity(cutThumbnail(gray, track.box, track.angle), track.thumbnail) >= HELD_SIMILARITY;
    }
  }

  // Returns what is found of a known face, { track, box, angle, thumbnail, alike }; null if the cascades miss it.
  async searchKnown(gray, track) {
    const search = (neighbors, options) => searchFace(gray, track.box, this.detector.frontal, neighbors, options);
    const describe = ({ box }, angle) => {
      const thumbnail = cutThumbnail(gray, box, angle);
      return { track, box, angle, thumbnail, alike: similarity(thumbnail, track.thumbnail) };
    };
    const isDue = track.time - track.checked >= CHECK_INTERVAL;
    if (!isDue && track.settled && track.evidence >= TRUSTED_EVIDENCE) {
      const find = describe(track, 0);
      if (find.alike >= UNCHANGED_SIMILARITY) return { ...find, thumbnail: track.thumbnail };
    }
    if (track.angle || isDue) {
      const upright = search(NEW_NEIGHBORS, track.angle ? { sizes: CHECK_SIZES } : {});
      const tilted = track.angle && (upright || isDue) ? search(NEW_NEIGHBORS, { angle: track.angle }) : null;
      // An upright face wins over a tilted one, unless the tilt fits much better.
      const isUpright = 2 * (upright?.agreeing ?? 0) >= (tilted?.agreeing ?? 0), found = isUpright ? upright : tilted;
      if (found && (!isUpright || !track.angle || await faceEvidence(gray, found.box, this.detector))) {
        track.checked = track.time;
        return describe(found, isUpright ? 0 : track.angle);
      }
    }
    const angles = [track.angle, track.angle - TILT, track.angle + TILT].filter((angle) => Math.abs(angle) <= MAX_TILT);
    for (const angle of track.time - track.checked < MAX_UNCHECKED ? angles : []) {
      const isKnown = angle === track.angle, view = { ...KNOWN, angle };
      // A turned face is found more often in the plain gray levels.
      const found = search(KNOWN_NEIGHBORS, view) ?? (isKnown && search(KNOWN_NEIGHBORS, { ...view, tone: null }));
      const find = found && describe(found, angle);
      // Turned by an angle, a shoulder or a sleeve can pass for a face.
      const isSame = async () => find.alike >= SAME_SIMILARITY && faceEvidence(gray, find.box, this.detector, { angle });
      if (find && (isKnown || await isSame())) return find;
    }
    return null;
  }

  // Adds evidence that a new track is a face. A false detection may pass once, but not in every frame.
  async confirm(gray, track) {
    if (track.evidence >= TRUSTED_EVIDENCE) return;
    const evidence = await faceEvidence(gray, track.box, this.detector, { angle: track.angle });
    track.evidence += evidence;
    track.refusals = evidence ? 0 : track.refusals + 1;
  }

  // Starts a track at a candidate from the scan, if it is confirmed and no face is followed there.
  async findNew(gray, time, angle) {
    for (const place of scanReduced(gray, this.detector.frontal, angle)) {
      const present = this.tracks.filter((track) => track.present).map((track) => track.box);
      if (overlapsAny(place, present)) continue;
      const found = searchFace(gray, place, this.detector.frontal, NEW_NEIGHBORS, { angle });
      if (!found || overlapsAny(found.box, present)) continue;
      const track = new Track(gray, found.box, angle, time);
      await this.confirm(gray, track);
      if (!track.refusals) this.tracks.push(track);
    }
  }

  // Gives a face, when first shown, the number of a similar lost face, or a new number.
  giveTrackId(track) {
    const gone = [...this.tracks.filter((old) => old.trackId && !old.shown), ...this.lost];
    const alike = gone.map((old) => similarity(old.thumbnail, track.thumbnail));
    const old = gone[alike.indexOf(Math.max(PERSON_SIMILARITY, ...alike))];
    const { trackId, probabilities, averaged } = old ?? { ...track, trackId: ++this.count };
    Object.assign(track, { trackId, probabilities, averaged });
    [this.tracks, this.lost] = [this.tracks, this.lost].map((list) => list.filter((other) => other !== old));
  }
}

// Returns the boxes of candidates for faces tilted by an angle, in pixels of the frame.
function scanReduced(gray, cascade, angle) {
  const reduction = Math.min(1, SCAN_LINES / Math.min(gray.rows, gray.cols)), reduced = temporary(new cv.Mat());
  cv.resize(gray, reduced, new cv.Size(0, 0), reduction, reduction, cv.INTER_AREA);
  const { image, turnBack } = turnUpright(applyTone(reduced, TONE), angle);
  // 0 neighbors find a quarter more faces than 2, at the cost of two more searches per scan.
  const found = detectMultiScale(cascade, image, SIZE_STEP, 0, MIN_SIZE).map(({ box }) => box), places = [];
  for (const [left, top, width] of found.sort((a, b) => b[2] - a[2])) {
    const corner = turnBack([left + width / 2, top + width / 2]).map((side) => side - width / 2);
    const box = [...corner, width, width].map((side) => side / reduction);
    if (!overlapsAny(box, places.filter((other) => other[2] < SAME_PLACE * box[2]))) places.push(box);
  }
  return places;
}

// Returns a face as Uint8Array (576), turned upright.
const cutThumbnail = (gray, box, angle) => cutSquare(gray, box, THUMBNAIL, { angle }).data.slice();

const isWithin = ([x, y, width, height], { cols, rows }) => Math.min(x, y, cols - x - width, rows - y - height) >= 0;
