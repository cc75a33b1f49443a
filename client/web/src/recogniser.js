// Recognises emotions with an exported model on onnxruntime, as Python's OnnxRecogniser does.
import { DecisionRule, LONG_S, MAX_WINDOWS, applyHead, findThreshold, iterateWindows } from "./decision.js";
import { measureUnfamiliarity, mixEvidence, weigh } from "./decision.js";
import { loadFolder } from "./model-folder.js";
import { checkQuality } from "./quality.js";
import { AudioError, makeSignal, resample } from "./signal.js";
import { SpeechDetector, cutToSpeech, findSpeech, hasQuietSpeech } from "./voice-activity.js";

const MAX_LEARNED_S = 60;

export class Recogniser {
  /** Use `Recogniser.open`. */
  constructor({ ort, record, session, detector }, options = {}) {
    Object.assign(this, { ort, record, session, detector });
    this.options = { coverage: 0.9, minConfidence: null, ...options };
    const { coverage, minConfidence, mean, head } = this.options;
    if (!(coverage > 0 && coverage < 1)) throw new RangeError(`coverage is ${coverage}; it must be in (0, 1)`);
    if (minConfidence !== null && !(minConfidence >= 0 && minConfidence <= 1)) {
      throw new RangeError(`minConfidence is ${minConfidence}; it must be in [0, 1]`);
    }
    const size = record.centre.length;
    if (mean && !(mean.length === size && mean.every(Number.isFinite))) {
      throw new RangeError(`the user's mean has ${mean.length} inputs; it must have ${size}, all finite`);
    }
    if (head && !(head.bias.length === record.labels.length && (!head.weights || head.basisTag === record.basis_tag))) {
      throw new RangeError("the user's head is of another model: fit it again for this one");
    }
    this.startMean = Float32Array.from(mean ?? record.centre);
    this.mean = this.startMean;
    this.head = head ?? { logTemperature: record.prior.log_temperature, bias: record.prior.bias };
    this.voice = [];
    this.running = Promise.resolve();
    this.settle();
  }

  /**
   * Opens an exported model and the detector; nothing but these files is asked for.
   * @param {string | URL} url Folder that `sottovoce export` wrote.
   */
  static async open(url, { ort, detector, digest, ...options }) {
    // One thread: sums are always in the same order, and no page needs to be isolated for it.
    if (ort.env?.wasm) ort.env.wasm.numThreads = 1;
    const { record, graph } = await loadFolder(url, { digest });
    const judge = await ort.InferenceSession.create(await loadBytes(detector));
    const session = await ort.InferenceSession.create(graph);
    return new Recogniser({ ort, record, session, detector: new SpeechDetector(ort, judge) }, options);
  }

  /** Emotions that the model knows. */
  get labels() {
    return [...this.record.labels];
  }

  /** Recognises the emotion of one recording; calls wait for each other. */
  predict(samples, rate) {
    const signal = asSignal(samples, rate);
    return this.inTurn(() =>
      signal.samples.length / signal.rate > LONG_S ? this.predictLong(signal) : this.predictShort(signal),
    );
  }

  /** Gets used to a voice by one recording, in memory alone; returns how many there are now. */
  learnVoice(samples, rate) {
    if (!this.record.subtracts_user_mean) throw new RangeError("this model subtracts no user's mean");
    const signal = asSignal(samples, rate);
    return this.inTurn(async () => {
      if (signal.samples.length / signal.rate > MAX_LEARNED_S) {
        throw new AudioError(`the recording is longer than ${MAX_LEARNED_S} s; nothing was learned from it`);
      }
      const recording = await this.readFeatures(signal);
      if (!recording.output) throw new AudioError(`${recording.reason}; nothing was learned from it`);
      this.voice.push(recording.output.projected);
      const share = this.voice.length / (this.voice.length + this.record.voice_prior_utterances);
      this.mean = this.startMean.map((value, axis) => {
        const average = this.voice.reduce((sum, one) => sum + one[axis], 0) / this.voice.length;
        return share * average + (1 - share) * value;
      });
      this.settle();
      return this.voice.length;
    });
  }

  inTurn(work) {
    const done = this.running.then(work);
    this.running = done.catch(() => {});
    return done;
  }

  settle() {
    const { record, options } = this;
    const prior = record.voice_prior_utterances;
    const doubt = options.mean ? 0 : prior / (this.voice.length + prior);
    this.temperature = record.unknown_voice_temperature ** doubt;
    const usual = this.temperature > 1 ? 0.5 : Math.min(2 / record.labels.length, 0.5);
    this.threshold = findThreshold(record.prior, options.ownScores, options.coverage);
    this.rule = new DecisionRule({
      labels: record.labels,
      modelHash: record.model_hash,
      minConfidence: options.minConfidence ?? usual,
      coverage: options.coverage,
      subtractsUserMean: record.subtracts_user_mean,
      hasOwnMean: Boolean(options.mean) || this.voice.length > 0,
      hasOwnHead: Boolean(options.head),
      hasOwnScores: Boolean(options.ownScores),
    });
  }

  async predictShort(signal) {
    const recording = await this.readFeatures(signal);
    return recording.output ? this.rule.decide(this.weigh(recording.output), recording) : this.rule.abstain(recording);
  }

  async predictLong(signal) {
    const measured = checkQuality(signal);
    const quality = ["long", ...measured.quality];
    if (measured.reason) return this.rule.abstain({ ...measured, quality });
    let refused = measured;
    const found = [];
    for (const window of iterateWindows(signal)) {
      const recording = await this.readFeatures(window);
      if (recording.output) found.push(this.weigh(recording.output));
      else refused = recording;
      if (found.length === MAX_WINDOWS) break;
    }
    if (!found.length) return this.rule.abstain({ ...refused, quality: [...new Set([...quality, ...refused.quality])] });
    const nextStep = measured.nextStep || "cut it into utterances, and ask for each";
    return this.rule.decide(mixEvidence(found), { ...measured, quality, nextStep });
  }

  /** Output of the graph for a recording, or the reason why it has none. */
  async readFeatures(signal) {
    const checked = checkQuality(signal);
    if (checked.reason) return checked;
    const { samples } = resample(signal);
    const found = await findSpeech(samples, this.detector);
    if (!found.hasSpeech && !(await hasQuietSpeech(samples, this.detector))) {
      return {
        quality: [...checked.quality, "no speech"],
        reason: "no speech was found in the recording",
        abstention: "no speech",
        nextStep: "speak while it records, nearer to the microphone",
      };
    }
    const output = await this.run(cutToSpeech(samples, found));
    if (!output.features.every(Number.isFinite)) {
      return { ...checked, reason: "the exported model gave values that are not finite", nextStep: "record again" };
    }
    return { ...checked, output };
  }

  async run({ samples, spoken }) {
    const { Tensor } = this.ort;
    const outputs = await this.session.run({
      samples: new Tensor("float32", samples, [samples.length]),
      spoken: new Tensor("bool", spoken, [spoken.length]),
      mean: new Tensor("float32", this.mean, [this.mean.length]),
    });
    // Copies: the runtime may use its memory again.
    return Object.fromEntries(Object.entries(outputs).map(([name, one]) => [name, one.data.slice()]));
  }

  weigh({ logits, coordinates, projected }) {
    const chances = applyHead(this.head, logits, coordinates);
    const apart = measureUnfamiliarity(projected, this.mean, this.record.familiar_speech);
    return weigh(chances, apart, { threshold: this.threshold, temperature: this.temperature });
  }
}

async function loadBytes(source) {
  if (source instanceof Uint8Array) return source;
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${source} cannot be loaded (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

function asSignal(sound, rate) {
  // A recording that was read already, or an AudioBuffer of the Web Audio API.
  if (sound?.samples instanceof Float32Array && Array.isArray(sound.defects)) return sound;
  if (typeof sound?.getChannelData === "function") {
    const channels = Array.from({ length: sound.numberOfChannels }, (_, index) => sound.getChannelData(index));
    return makeSignal(channels, sound.sampleRate);
  }
  return makeSignal(sound, rate);
}
