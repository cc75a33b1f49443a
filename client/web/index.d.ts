/** Why no emotion is named. */
export type Abstention =
  | "unusable recording" | "no speech" | "unlike what the model knows"
  | "more than one emotion" | "not sure enough" | "broken model";

/** Answer to one recording, as Python's `Prediction.to_dict()`. */
export interface Prediction {
  emotion: string | null;
  confidence: number;
  /** Chance of each emotion, summing to 1; empty where nothing was guessed. */
  probabilities: Record<string, number>;
  /** Every emotion that cannot be ruled out at `coverage`, the likeliest first. */
  set: string[];
  coverage: number | null;
  abstained: boolean;
  reason: string;
  abstention: Abstention | null;
  quality: string[];
  nextStep: string;
  ownNormaliser: boolean;
  ownHead: boolean;
  ownSet: boolean;
  model: string;
}

/** Mono sound with its rate, and what its reader found wrong with it. */
export interface Signal { samples: Float32Array; rate: number; defects: string[] }

/** A user's calibration head. */
export interface Head {
  logTemperature: number;
  bias: number[];
  /** Shape (classes, rank), on the coordinates of the model's basis. */
  weights?: number[][];
  basisTag?: string;
}

export interface Options {
  /** How often a set shall hold the true emotion, in (0, 1); 0.9. */
  coverage?: number;
  /** Below it nothing is answered; twice chance, at most one half. */
  minConfidence?: number | null;
  /** The user's mean of projected features, as `recogniser.mean` had it. */
  mean?: ArrayLike<number> & { every(test: (value: number) => boolean): boolean };
  head?: Head;
  /** Nonconformity scores of the user's labelled clips, in [0, 1]. */
  ownScores?: number[];
}

export interface OpenOptions extends Options {
  /** The module `onnxruntime-web/wasm`, or `onnxruntime-node`. */
  ort: unknown;
  /** Address of Silero's `silero_vad.onnx`, or its bytes. */
  detector: string | URL | Uint8Array;
  /** SHA-256 that the model's `manifest.json` must have. */
  digest?: string;
}

export class Recogniser {
  private constructor();
  /** Opens the folder that `sottovoce export` wrote, its hashes verified. */
  static open(url: string | URL, options: OpenOptions): Promise<Recogniser>;
  readonly labels: string[];
  /** Mean that is subtracted for the voice; an app may keep it for later. */
  readonly mean: Float32Array;
  predict(sound: Signal | AudioBuffer): Promise<Prediction>;
  predict(samples: Float32Array | Float32Array[], rate: number): Promise<Prediction>;
  /** Gets used to a voice by one recording; returns how many there are now. */
  learnVoice(sound: Signal | AudioBuffer): Promise<number>;
  learnVoice(samples: Float32Array | Float32Array[], rate: number): Promise<number>;
}

/** Reads a WAV file at its own rate, whatever else this browser decodes at 48 kHz. */
export function readRecording(file: Blob): Promise<Signal>;
/** Reads a WAV file; null for any other file. */
export function readWav(bytes: Uint8Array): Signal | null;
export class AudioError extends Error {}
export class ModelError extends Error {}
