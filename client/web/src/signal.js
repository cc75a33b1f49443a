// Recordings: channels joined, quality measured, and brought to 16 kHz, as shared/audio does.

export const RATE = 16_000;
export const MAX_RATE = 768_000;
const MAX_AMPLITUDE = 100;
const MAX_SAMPLES = 3_600 * 192_000;
const ZERO_CROSSINGS = 64;
const ROLLOFF = 0.9475937167399596;
const KAISER_BETA = 14.769656459379492;
const FRAME = 2_048;

/** A recording that cannot be taken as sound; the message says what to do. */
export class AudioError extends Error {}

/** Whole numbers as Python rounds: halves to even. */
export function roundEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Takes samples of one channel or of several.
 * @param {Float32Array | Float32Array[]} samples
 * @param {number} rate
 */
export function makeSignal(samples, rate) {
  if (!Number.isInteger(rate) || !(rate > 0 && rate <= MAX_RATE)) {
    throw new AudioError(`the rate is ${rate} Hz; it must be a whole number above 0, at most ${MAX_RATE}`);
  }
  const channels = Array.isArray(samples) ? samples : [samples];
  if (!channels.length || channels.length > 32 || !channels.every((one) => one instanceof Float32Array)) {
    throw new AudioError("samples must be a Float32Array, or an array of 1 to 32 of them");
  }
  const count = channels[0].length;
  if (!count || !channels.every((one) => one.length === count) || count * channels.length > MAX_SAMPLES) {
    throw new AudioError("the recording holds no samples, too many, or channels of different lengths");
  }
  for (const channel of channels) {
    for (const sample of channel) {
      if (!(Math.abs(sample) <= MAX_AMPLITUDE)) {
        throw new AudioError(`a sample is ${sample}; full scale is 1, and ${MAX_AMPLITUDE} the limit`);
      }
    }
  }
  return { rate, ...mixChannels(channels) };
}

/** Mean of the channels, but for dead ones; the loudest alone where they cancel each other. */
function mixChannels(channels) {
  if (channels.length === 1) return { samples: channels[0], defects: [] };
  const { power, cancelled } = measureChannels(channels);
  const loudest = Math.max(...power);
  const defects = [];
  let live = loudest === 0 ? channels : channels.filter((_, index) => power[index] > 1e-6 * loudest);
  if (live.length < channels.length) defects.push("dead channel");
  if (loudest > 0 && cancelled) {
    live = [channels[power.indexOf(loudest)]];
    defects.push("channels cancel");
  }
  if (live.length === 1) return { samples: live[0], defects };
  const mean = new Float32Array(channels[0].length);
  for (const channel of live) for (let i = 0; i < mean.length; i++) mean[i] += channel[i];
  for (let i = 0; i < mean.length; i++) mean[i] /= live.length;
  return { samples: mean, defects };
}

function measureChannels(channels) {
  const power = channels.map(() => 0);
  let all = 0;
  let lost = 0;
  for (let start = 0; start < channels[0].length; start += FRAME) {
    const frames = channels.map((one) => one.subarray(start, start + FRAME));
    const offsets = frames.map((one) => one.reduce((sum, value) => sum + value, 0) / one.length);
    const powers = frames.map((one, index) => one.reduce((sum, value) => sum + (value - offsets[index]) ** 2, 0));
    powers.forEach((value, index) => { power[index] += value; });
    const largest = Math.max(...powers);
    const live = powers.flatMap((value, index) => (value > 1e-6 * largest ? [index] : []));
    let mixed = 0;
    for (let i = 0; live.length && i < frames[0].length; i++) {
      let sum = 0;
      for (const index of live) sum += frames[index][i] - offsets[index];
      mixed += (sum / live.length) ** 2;
    }
    const unrelated = live.reduce((sum, index) => sum + powers[index], 0) / Math.max(1, live.length) ** 2;
    all += largest;
    if (live.length > 1 && mixed < 0.1 * unrelated) lost += largest;
  }
  return { power, cancelled: lost > 0.1 * all };
}

/** Part of a recording, in seconds. */
export function cutSignal(signal, startS, seconds) {
  const first = roundEven(startS * signal.rate);
  const last = first + Math.max(1, roundEven(seconds * signal.rate));
  return { ...signal, samples: signal.samples.subarray(first, last) };
}

/** The same sound at 16 kHz: a Kaiser-windowed sinc of 64 zero crossings. */
export function resample(signal) {
  if (signal.rate === RATE) return signal;
  const divisor = greatestDivisor(RATE, signal.rate);
  const [old, fresh] = [signal.rate / divisor, RATE / divisor];
  const { samples } = signal;
  const cutoff = Math.min(old, fresh) * ROLLOFF;
  const reach = Math.ceil((ZERO_CROSSINGS * old) / cutoff);
  const converted = new Float32Array(Math.ceil((samples.length * fresh) / old));
  const kernels = new Map();
  for (let out = 0; out < converted.length; out++) {
    const phase = out % fresh;
    if (!kernels.has(phase)) {
      // Rates without a common divisor have as many kernels as samples: the oldest go.
      if (kernels.size > 2_000) kernels.clear();
      kernels.set(phase, makeKernel(phase / fresh, { old, cutoff, reach }));
    }
    const kernel = kernels.get(phase);
    const first = Math.floor(out / fresh) * old - reach;
    const low = Math.max(0, -first);
    const high = Math.min(kernel.length, samples.length - first);
    let sum = 0;
    for (let tap = low; tap < high; tap++) sum += kernel[tap] * samples[first + tap];
    converted[out] = sum;
  }
  return { ...signal, samples: converted, rate: RATE };
}

function makeKernel(at, { old, cutoff, reach }) {
  const kernel = new Float32Array(2 * reach + old);
  const norm = besselI0(KAISER_BETA);
  for (let tap = 0; tap < kernel.length; tap++) {
    const time = ((tap - reach) / old - at) * cutoff;
    if (Math.abs(time) >= ZERO_CROSSINGS) continue;
    const bell = besselI0(KAISER_BETA * Math.sqrt(1 - (time / ZERO_CROSSINGS) ** 2)) / norm;
    const sinc = time === 0 ? 1 : Math.sin(Math.PI * time) / (Math.PI * time);
    kernel[tap] = sinc * bell * (cutoff / old);
  }
  return kernel;
}

function besselI0(x) {
  let sum = 1;
  for (let k = 1, term = 1; term > 1e-17 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestDivisor(a, b) {
  return b ? greatestDivisor(b, a % b) : a;
}

/** Quantile with linear interpolation, as NumPy has it. */
export function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}
