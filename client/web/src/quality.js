// The quality gate's measures of a recording as it came, at its own rate (shared/audio/quality.py).
import { quantile, roundEven } from "./signal.js";

const MIN_DURATION_S = 0.25;
const SILENT_DBFS = -70;
const QUIET_DBFS = -55;
const FULL_SCALE = 0.98;
const CLIPPED_FRACTION = 1e-3;
const NOISY_DB = 10;

const ADVICE = {
  silent: "check that the microphone is on and speak again",
  "too short": `record at least ${MIN_DURATION_S} s of speech`,
  clipped: "hold the microphone further away, or lower its gain",
  noisy: "record where it is quieter",
  quiet: "speak closer to the microphone",
  "cut short": "the file ends before its headers say: copy or record it again",
  "channels cancel": "check the polarity of the microphones' plugs",
};

/** What is wrong with a recording: words, a reason where it cannot be used, and an advice. */
export function checkQuality(signal) {
  const measured = measure(signal);
  const silent = measured.loudest < SILENT_DBFS;
  const flaws = {
    silent: silent && `silent (${measured.level.toFixed(0)} dBFS, no frame above ${SILENT_DBFS})`,
    "too short":
      measured.duration < MIN_DURATION_S && `too short (${measured.duration.toFixed(3)} s, need ${MIN_DURATION_S})`,
    clipped:
      measured.clipped > CLIPPED_FRACTION && `clipped (${(100 * measured.clipped).toFixed(2)}% at full scale, 0.1% may)`,
    noisy: !silent && measured.snr < NOISY_DB && `noisy (${measured.snr.toFixed(0)} dB, want ${NOISY_DB})`,
    quiet: !silent && measured.level < QUIET_DBFS && `quiet (${measured.level.toFixed(0)} dBFS, want ${QUIET_DBFS})`,
    "cut short": signal.defects.includes("cut short") && "cut short (the file ends before its headers say)",
    "channels cancel":
      signal.defects.includes("channels cancel") && "of channels that cancel (the loudest one is read)",
    "dead channel": signal.defects.includes("dead channel") && "with a dead channel (it is left out)",
  };
  const quality = Object.keys(flaws).filter((name) => flaws[name]);
  const nextStep = ADVICE[quality.find((name) => ADVICE[name])] ?? "";
  const unusable = flaws.silent || flaws["too short"];
  const reason = unusable ? `the recording is ${quality.map((name) => flaws[name]).join(", ")}` : "";
  return { quality, nextStep, reason, abstention: "unusable recording" };
}

function measure({ samples, rate }) {
  let offset = 0;
  for (const sample of samples) offset += sample;
  offset /= samples.length;
  let power = 0;
  let clipped = 0;
  for (const sample of samples) {
    power += (sample - offset) ** 2;
    // As in single precision, in which the samples are compared.
    if (Math.abs(sample) >= Math.fround(FULL_SCALE)) clipped++;
  }
  const levels = frameLevels(samples, offset, Math.max(1, roundEven(0.02 * rate)));
  return {
    duration: samples.length / rate,
    level: 10 * Math.log10(power / samples.length + 1e-12),
    clipped: clipped / samples.length,
    snr: quantile(levels, 0.95) - quantile(levels, 0.1),
    loudest: levels.reduce((most, level) => Math.max(most, level), -Infinity),
  };
}

function frameLevels(samples, offset, length) {
  const step = Math.max(1, Math.floor(length / 2));
  const frames = Math.max(1, Math.floor((samples.length - length) / step) + 1);
  const levels = new Float64Array(frames);
  for (let frame = 0; frame < frames; frame++) {
    const first = frame * step;
    const last = Math.min(samples.length, first + length);
    let power = 0;
    for (let i = first; i < last; i++) power += (samples[i] - offset) ** 2;
    levels[frame] = 10 * Math.log10(power / length + 1e-12);
  }
  return levels;
}
