// Where a recording holds speech: Silero's detector, refined by energy (shared/audio/voice_activity.py).
import { quantile } from "./signal.js";

const CHUNK = 512; // samples at 16 kHz, 32 ms
const CONTEXT = 64;
const RATE = 16_000;
const SPEECH = Math.fround(0.3);
const CERTAIN = 0.5;
const MIN_CERTAIN_CHUNKS = 3;
const WIDEN_S = 0.1;
const MARGIN = 3_200; // samples, 0.2 s
const SILENT_PEAK = Math.fround(1e-4);
const LEVEL_WINDOW = 321;
const SEARCH = 4_800;
const FLOOR = 3_200;
const GAP = 1_600;
const AUDIBLE_PEAK = 0.1;

/** Silero's detector, chunk by chunk: the network remembers what it heard. */
export class SpeechDetector {
  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
  }

  /** Chance of speech in each 32 ms, zeros behind the last sample. */
  async judge(samples) {
    const { ort } = this;
    const chances = new Float32Array(Math.ceil(samples.length / CHUNK));
    const padded = new Float32Array(CONTEXT + chances.length * CHUNK);
    padded.set(samples, CONTEXT);
    const sr = new ort.Tensor("int64", BigInt64Array.from([BigInt(RATE)]), []);
    let state = new ort.Tensor("float32", new Float32Array(256), [2, 1, 128]);
    for (let index = 0; index < chances.length; index++) {
      const chunk = padded.slice(index * CHUNK, (index + 1) * CHUNK + CONTEXT);
      const input = new ort.Tensor("float32", chunk, [1, chunk.length]);
      const found = await this.session.run({ input, state, sr });
      chances[index] = found.output.data[0];
      state = found.stateN;
    }
    return chances;
  }
}

/** Finds the speech of samples at 16 kHz. */
export async function findSpeech(samples, detector) {
  const [first, last] = soundingPart(samples);
  const sounding = samples.subarray(first, last);
  const chances = await detector.judge(sounding);
  const hasSpeech = isSpeech(chances);
  const edges = hasSpeech ? speechEdges(sounding, chances) : [0, samples.length];
  const [start, end] = hasSpeech ? edges.map((edge) => Math.min(samples.length, first + edge)) : edges;
  return { hasSpeech, offset: first, chances, start, end };
}

/** Whether samples hold speech, however quiet, given what was found in them as they are. */
export async function hasQuietSpeech(samples, detector) {
  let peak = 0;
  for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
  if (!(peak > 0 && peak < AUDIBLE_PEAK)) return false;
  const gain = Math.fround(AUDIBLE_PEAK / peak);
  return (await findSpeech(samples.map((sample) => sample * gain), detector)).hasSpeech;
}

/** Cuts samples to their speech with its margins, and marks the frames of 20 ms that are speech. */
export function cutToSpeech(samples, found) {
  const [first, last] = found.hasSpeech ? [found.start - MARGIN, found.end + MARGIN] : soundingPart(samples);
  const cut = new Float32Array(last - first);
  cut.set(samples.subarray(Math.max(0, first), last), Math.max(0, -first));
  return { samples: cut, spoken: markFrames(cut.length, first, found) };
}

function markFrames(samples, first, found) {
  const mask = new Uint8Array(Math.ceil(Math.floor(Math.max(samples, 800) / 160) / 2));
  if (!found.hasSpeech) return mask.fill(1);
  const spans = spokenSpans(found);
  let count = 0;
  for (let frame = 0; frame < mask.length; frame++) {
    const centre = (first + 320 * frame) / RATE;
    const spoken = spans.some(([start, end]) => centre >= start && centre < end);
    mask[frame] = Number(spoken && centre >= found.start / RATE && centre < found.end / RATE);
    count += mask[frame];
  }
  return count >= 2 ? mask : mask.fill(1);
}

function spokenSpans({ chances, offset }) {
  const spans = [];
  for (const [from, to] of findRuns(chances, SPEECH)) {
    const start = (from * CHUNK + offset) / RATE - WIDEN_S;
    const end = (to * CHUNK + offset) / RATE + WIDEN_S;
    if (spans.length && !(start > spans.at(-1)[1])) spans.at(-1)[1] = end;
    else spans.push([start, end]);
  }
  return spans;
}

function findRuns(chances, above) {
  const runs = [];
  let start = -1;
  for (let index = 0; index <= chances.length; index++) {
    const inside = index < chances.length && chances[index] > above;
    if (inside && start < 0) start = index;
    if (!inside && start >= 0) {
      runs.push([start, index]);
      start = -1;
    }
  }
  return runs;
}

function isSpeech(chances) {
  return chances.reduce((count, chance) => count + Number(chance > CERTAIN), 0) >= MIN_CERTAIN_CHUNKS;
}

function soundingPart(samples) {
  let first = 0;
  let last = samples.length;
  while (first < last && !(Math.abs(samples[first]) > SILENT_PEAK)) first++;
  if (first === last) return [0, samples.length];
  while (!(Math.abs(samples[last - 1]) > SILENT_PEAK)) last--;
  return [first, last];
}

function speechEdges(samples, chances) {
  const runs = findRuns(chances, CERTAIN);
  const long = runs.filter(([from, to]) => to - from >= MIN_CERTAIN_CHUNKS);
  const chosen = long.length ? long : runs;
  const levels = [];
  chances.forEach((chance, index) => {
    if (!(chance > CERTAIN)) return;
    let power = 0;
    for (const sample of samples.subarray(index * CHUNK, (index + 1) * CHUNK)) power += sample * sample;
    levels.push(decibels(power / CHUNK));
  });
  const loud = quantile(levels, 0.9);
  const start = burstStart(samples, chosen[0][0] * CHUNK, loud);
  const last = chosen.at(-1)[1] * CHUNK;
  const end = samples.length - burstStart(samples.slice().reverse(), Math.max(0, samples.length - last), loud);
  return [start, Math.max(end, start + 1)];
}

/** Where the burst of sound begins that the detector's edge lies in, or else the next one. */
function burstStart(samples, edge, loud) {
  const before = Math.max(0, edge - SEARCH);
  const levels = slidingLevels(samples.subarray(before, edge + SEARCH));
  let threshold = loud - 30;
  const floor = levels.subarray(Math.max(0, edge - before - FLOOR), edge - before);
  if (floor.length >= GAP) threshold = Math.max(threshold, Math.min(quantile(floor, 0.5) + 6, loud - 10));
  let start = -1;
  let end = -1;
  for (let index = 0; index < levels.length; index++) {
    if (!(levels[index] > threshold)) continue;
    const at = index + before;
    // Sounds that are further apart than the gap are bursts of their own.
    if (start >= 0 && at - end > GAP) {
      if (end >= edge - GAP) return start;
      start = -1;
    }
    if (start < 0) start = at;
    end = at;
  }
  return start >= 0 && end >= edge - GAP ? start : edge;
}

function slidingLevels(samples) {
  const half = LEVEL_WINDOW >> 1;
  const sums = new Float64Array(samples.length + 1);
  samples.forEach((sample, index) => { sums[index + 1] = sums[index] + sample * sample; });
  return new Float64Array(samples.length).map((_, index) => {
    const high = sums[Math.min(samples.length, index + half + 1)];
    return decibels((high - sums[Math.max(0, index - half)]) / LEVEL_WINDOW);
  });
}

function decibels(power) {
  return 10 * Math.log10(Math.max(power, 0) + 1e-10);
}
