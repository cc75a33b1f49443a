// From logits to an answer, a set, or an abstention (client/recognition/decision.py and evidence.py).
import { cutSignal } from "./signal.js";

export const LONG_S = 10;
export const MAX_WINDOWS = 20;
const WINDOW_S = 5;
const AGREEMENT = 0.8;
const MIN_VOTES = 5;
const LARGEST_DEVIATION = 10;
const UNFAMILIAR = "unlike what the model knows";

/** Probabilities of a head: softmax of logits / temperature + bias + weights · coordinates. */
export function applyHead(head, logits, coordinates) {
  const scale = Math.fround(Math.exp(-head.logTemperature));
  const values = Array.from(logits, (logit, index) => {
    let value = Math.fround(Math.fround(logit * scale) + Math.fround(head.bias[index]));
    head.weights?.[index].forEach((weight, axis) => { value += weight * coordinates[axis]; });
    return value;
  });
  const most = Math.max(...values);
  return normalise(values.map((value) => Math.exp(value - most)));
}

function normalise(values) {
  const sum = values.reduce((total, value) => total + value, 0);
  return values.map((value) => value / sum);
}

/** Distance to the nearest of two means of familiar speech, in units of its limit. */
export function measureUnfamiliarity(projected, mean, known) {
  if (!known) return 0;
  const distances = [known.mean, mean].map((reference) => {
    let sum = 0;
    for (let axis = 0; axis < projected.length; axis++) {
      const apart = (projected[axis] - reference[axis]) / known.scale[axis];
      const bounded = Number.isNaN(apart) ? LARGEST_DEVIATION : apart;
      sum += Math.max(-LARGEST_DEVIATION, Math.min(LARGEST_DEVIATION, bounded)) ** 2;
    }
    return Math.sqrt(sum / projected.length);
  });
  return Math.min(...distances) / known.limit;
}

/** Evidence of one recording: tempered, softened where it is unfamiliar, with its set. */
export function weigh(probabilities, unfamiliarity, { threshold, temperature }) {
  const tempered =
    temperature === 1 ? probabilities : normalise(probabilities.map((chance) => chance ** (1 / temperature)));
  const said = soften(tempered, unfamiliarity);
  const order = rank(said);
  let members = [];
  if (threshold !== null) {
    const limit = unfamiliarity <= 1 ? threshold : 1;
    members = order.filter((index) => 1 - said[index] <= limit);
    if (!members.length) members = order.slice(0, 1);
  }
  const votes = said.map((_, index) => Number(index === order[0]));
  return { probabilities: said, members, unfamiliarity, votes };
}

function soften(probabilities, unfamiliarity) {
  if (unfamiliarity <= 0.8) return probabilities;
  const doubt =
    unfamiliarity <= 1
      ? (0.75 * (unfamiliarity - 0.8)) / (1 - 0.8)
      : 1 - 0.25 / Math.min(unfamiliarity, LARGEST_DEVIATION) ** 2;
  return probabilities.map((chance) => (1 - doubt) * chance + doubt / probabilities.length);
}

function rank(values) {
  return values.map((_, index) => index).sort((a, b) => values[b] - values[a] || a - b);
}

/** Evidence of windows together: mean probabilities, all their sets, median unfamiliarity. */
export function mixEvidence(windows) {
  const sum = (name, index) => windows.reduce((total, one) => total + one[name][index], 0);
  const indices = windows[0].probabilities.map((_, index) => index);
  const probabilities = indices.map((index) => sum("probabilities", index) / windows.length);
  const distances = windows.map((one) => one.unfamiliarity).sort((a, b) => a - b);
  return {
    probabilities,
    members: rank(probabilities).filter((index) => windows.some((one) => one.members.includes(index))),
    unfamiliarity: distances[(distances.length - 1) >> 1],
    votes: indices.map((index) => sum("votes", index)),
  };
}

/** Windows of a long recording, whose beginnings spread over its length (van der Corput). */
export function* iterateWindows(signal) {
  const count = Math.max(1, Math.floor(signal.samples.length / signal.rate / WINDOW_S + 0.5));
  const bits = count > 1 ? Math.ceil(Math.log2(count)) : 0;
  for (let number = 0; number < 2 ** bits; number++) {
    let index = 0;
    for (let bit = 0; bit < bits; bit++) index = index * 2 + ((number >> bit) & 1);
    if (index < count) yield cutSignal(signal, index * WINDOW_S, WINDOW_S);
  }
}

/** Largest nonconformity score in a prediction set (shared/calibration/conformal.py). */
export function findThreshold(prior, ownScores, coverage) {
  if (!prior.scores) return null;
  const own = ownScores ?? [];
  if (!own.every((score) => score >= 0 && score <= 1)) throw new RangeError("a score is outside [0, 1]");
  const concentration = own.length ? prior.scores_concentration : 1;
  const each = ((1 - prior.scores_beyond) * concentration) / prior.scores.length;
  const weighted = [
    ...prior.scores.map((value) => ({ value, weight: each, isOwn: false })),
    ...own.map((value) => ({ value, weight: 1, isOwn: true })),
  ].sort((a, b) => a.value - b.value);
  const total = weighted.reduce((sum, one) => sum + one.weight, 0) + prior.scores_beyond * concentration;
  let sum = 0;
  const mass = weighted.map((one) => (sum += one.weight) / total);
  const index = mass.findIndex((share) => share >= coverage - 1e-9);
  if (index < 0) return Infinity;
  const score = weighted[index].value;
  if (index === 0 || weighted[index].isOwn) return score;
  const below = weighted[index - 1].value;
  return below + (score - below) * Math.min((coverage - mass[index - 1]) / (mass[index] - mass[index - 1]), 1);
}

/** Decides on answers of one model for one user. */
export class DecisionRule {
  constructor(settings) {
    Object.assign(this, settings);
  }

  decide(found, recording) {
    const best = rank(found.probabilities)[0];
    const confidence = found.probabilities[best];
    if (!(confidence >= 0)) {
      const broken = { reason: "the model gave no numbers", abstention: "broken model", nextStep: "get the model again" };
      return this.abstain({ ...recording, ...broken });
    }
    const doubt = this.findDoubt(found, confidence, best);
    return this.predict({
      emotion: doubt ? null : this.labels[best],
      probabilities: Object.fromEntries(this.labels.map((label, index) => [label, found.probabilities[index]])),
      confidence,
      set: found.members.map((index) => this.labels[index]),
      recording: {
        ...recording,
        abstention: doubt ? doubt[0] : null,
        reason: doubt ? doubt[1] : "",
        nextStep: recording.nextStep || (doubt ? this.advise(doubt[0]) : ""),
      },
    });
  }

  findDoubt(found, confidence, best) {
    if (found.unfamiliarity > 1) {
      const times = found.unfamiliarity.toFixed(1);
      return [UNFAMILIAR, `the recording is ${UNFAMILIAR} (${times} times as far from it as public speech)`];
    }
    const total = found.votes.reduce((sum, count) => sum + count, 0);
    if (total >= MIN_VOTES && found.votes[best] < AGREEMENT * total) {
      const parts = rank(found.votes)
        .filter((index) => found.votes[index])
        .map((index) => `${this.labels[index]} in ${found.votes[index]}`);
      return ["more than one emotion", `it holds more than one emotion: ${parts.join(", ")} parts of it`];
    }
    if (confidence < this.minConfidence) {
      return ["not sure enough", `confidence ${percent(confidence)} is below ${percent(this.minConfidence)}`];
    }
    return null;
  }

  abstain(recording) {
    return this.predict({ emotion: null, probabilities: {}, confidence: 0, set: [], recording });
  }

  predict({ emotion, probabilities, confidence, set, recording }) {
    return {
      emotion,
      confidence,
      probabilities,
      set,
      coverage: set.length ? this.coverage : null,
      abstained: emotion === null,
      reason: recording.reason,
      abstention: emotion === null ? recording.abstention : null,
      quality: recording.quality,
      nextStep: recording.nextStep,
      ownNormaliser: this.hasOwnMean,
      ownHead: this.hasOwnHead,
      ownSet: set.length > 0 && this.hasOwnScores,
      model: this.modelHash,
    };
  }

  advise(abstention) {
    if (abstention === UNFAMILIAR && this.hasOwnMean) {
      return "ask the speaker: this model was not trained on such sound";
    }
    if (this.subtractsUserMean && !this.hasOwnMean) return "enrol this user's voice with a few clips";
    if (!this.hasOwnHead) return "label a few clips, so that the device can fit this user's head";
    return "ask the speaker, or record a longer utterance";
  }
}

function percent(share) {
  return `${(100 * share).toFixed(0)}%`;
}
