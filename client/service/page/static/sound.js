// From the microphone to pieces of sound, with their level and pitch; nothing is sent from here.

const LOWEST_HZ = 70;
const HIGHEST_HZ = 400;

export class Ear {
  // Calls back with each piece: samples, level in dB below full scale, pitch in Hz or 0.
  constructor(onPiece) {
    this.onPiece = onPiece;
  }

  async open() {
    this.media = await navigator.mediaDevices.getUserMedia({
      // What a browser does to a voice for telephony takes out of it what is looked for.
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("/microphone.js");
    const source = this.context.createMediaStreamSource(this.media);
    this.node = new AudioWorkletNode(this.context, "microphone", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => {
      const level = measureLevel(data);
      this.onPiece(data, level, level > -50 ? findPitch(data, this.context.sampleRate) : 0);
    };
    source.connect(this.node);
    await this.context.resume();
    return Math.round(this.context.sampleRate);
  }

  close() {
    for (const track of this.media?.getTracks() ?? []) track.stop();
    this.context?.close();
  }
}

export function measureLevel(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return 10 * Math.log10(sum / samples.length + 1e-10);
}

// Normalised autocorrelation of every fourth sample: good enough for a line, and cheap.
export function findPitch(samples, rate) {
  const step = Math.max(1, Math.floor(rate / 12_000));
  const few = [];
  for (let index = 0; index + step <= samples.length; index += step) {
    let sum = 0;
    for (let inner = 0; inner < step; inner++) sum += samples[index + inner];
    few.push(sum / step);
  }
  const slow = rate / step;
  const most = Math.min(Math.floor(slow / LOWEST_HZ), few.length >> 1);
  let best = 0;
  let lag = 0;
  for (let shift = Math.floor(slow / HIGHEST_HZ); shift <= most; shift++) {
    let product = 0;
    let first = 0;
    let second = 0;
    for (let index = 0; index + most < few.length; index++) {
      product += few[index] * few[index + shift];
      first += few[index] * few[index];
      second += few[index + shift] * few[index + shift];
    }
    const likeness = product / Math.sqrt(first * second + 1e-12);
    if (likeness > best + 0.01) [best, lag] = [likeness, shift];
  }
  return best > 0.6 ? slow / lag : 0;
}

// A WAV file of 16-bit samples, for recordings that are uploaded whole.
export function encodeWav(pieces, rate) {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const write = (at, text) => [...text].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const piece of pieces) {
    for (const sample of piece) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32_767, true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}
