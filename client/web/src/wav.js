// WAV files at their own rate: a browser's own decoder would bring them to another one.
import { AudioError, makeSignal } from "./signal.js";

/** Reads a WAV file of PCM or floats; null for any other file. */
export function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 44 || word(0) !== "RIFF" || word(8) !== "WAVE") return null;
  let format = null;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    if (word(at) === "fmt ") {
      format = { kind: view.getUint16(at + 8, true), channels: view.getUint16(at + 10, true) };
      Object.assign(format, { rate: view.getUint32(at + 12, true), bits: view.getUint16(at + 22, true) });
      if (format.kind === 0xfffe) format.kind = view.getUint16(at + 32, true);
    }
    if (word(at) === "data" && format) return decode(view, at + 8, size, format);
    at += 8 + size + (size % 2);
  }
  throw new AudioError("the WAV file holds no sound; record it again");
}

function decode(view, start, promised, { kind, channels, rate, bits }) {
  const read = READERS[`${kind}/${bits}`];
  if (!read || !channels || channels > 32) throw new AudioError(`a WAV file of ${bits} bits is not read; save it as 16-bit PCM`);
  const there = Math.min(promised, view.byteLength - start);
  const width = bits / 8;
  const frames = Math.floor(there / (width * channels));
  const sound = Array.from({ length: channels }, () => new Float32Array(frames));
  for (let frame = 0, at = start; frame < frames; frame++) {
    for (let channel = 0; channel < channels; channel++, at += width) sound[channel][frame] = read(view, at);
  }
  const signal = makeSignal(sound, rate);
  if (promised < 0x7fff_0000 && promised - there > 256) signal.defects.push("cut short");
  return signal;
}

const READERS = {
  "1/8": (view, at) => (view.getUint8(at) - 128) / 128,
  "1/16": (view, at) => view.getInt16(at, true) / 32_768,
  "1/24": (view, at) => (view.getUint16(at, true) + 65_536 * view.getInt8(at + 2)) / 8_388_608,
  "1/32": (view, at) => view.getInt32(at, true) / 2_147_483_648,
  "3/32": (view, at) => view.getFloat32(at, true),
  "3/64": (view, at) => view.getFloat64(at, true),
};

/** Reads any file that this browser decodes. */
export async function readRecording(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const wav = readWav(bytes);
  if (wav) return wav;
  try {
    const sound = await new OfflineAudioContext(1, 1, 48_000).decodeAudioData(bytes.buffer);
    return makeSignal(Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i)), sound.sampleRate);
  } catch (error) {
    throw new AudioError(`this browser cannot read the file (${error.message}); convert it to WAV`);
  }
}
