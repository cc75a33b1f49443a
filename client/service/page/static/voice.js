// A minute of reading aloud, one sentence at a time, after which the model knows the voice.

import { ask } from "./api.js";
import { VoiceLine } from "./charts.js";
import { announce, button, card, el } from "./dom.js";
import { encodeWav, Ear } from "./sound.js";
import { purposeCard } from "./welcome.js";
import * as words from "./words.js";

const { t } = words;
const SENTENCES = 10;
const SHORTEST_S = 1.5;

export async function render({ consent, leaving, refresh }) {
  const state = consent.purposes.find((one) => one.purpose === "personalise");
  const top = [el("h1", {}, t("voice.title")), el("p", { className: "lede" }, t("voice.lede"))];
  const own = purposeCard(state, refresh);
  if (!state.allowed) return [...top, el("div", { className: "split" }, el("div", {}, el("p", {}, t("voice.no-consent")), own), el("div"))];
  const reader = new Reader(await countVoice());
  leaving(() => reader.close());
  return [...top, el("div", { className: "split" }, reader.part(), el("div", {}, el("p", {}, t("voice.better")), own))];
}

// The same recording twice counts once: the device knows how many there are.
async function countVoice() {
  const { recordings } = await ask("GET", "/v1/recordings");
  return recordings.filter(({ uses }) => uses.includes("voice")).length;
}

class Reader {
  constructor(learned) {
    this.learned = learned;
    this.number = learned % SENTENCES;
    this.text = el("p", { className: "reading" });
    this.where = el("p", { className: "small" });
    this.said = el("p", { className: "said", role: "status" });
    this.line = new VoiceLine(t("listen.line"));
    this.bar = el("progress", { max: SENTENCES });
    this.progress = el("p", { className: "small" });
    this.control = button(t("voice.record"), () => (this.ear ? this.finish() : this.start()), { className: "main large", id: "record" });
    this.show();
  }

  part() {
    return card(null, this.where, this.text, this.line.canvas,
      el("p", { className: "actions" }, this.control, button(t("voice.next"), () => { this.number++; this.show(); })),
      this.said, el("label", {}, this.progress, this.bar));
  }

  show() {
    const at = this.number % SENTENCES;
    this.where.textContent = t("voice.sentence", { number: at + 1, count: SENTENCES });
    this.text.textContent = t(`voice.s${at + 1}`);
    this.progress.textContent = t("voice.progress", { count: Math.min(this.learned, SENTENCES), goal: SENTENCES });
    this.bar.value = Math.min(this.learned, SENTENCES);
  }

  async start() {
    this.pieces = [];
    this.said.textContent = "";
    const ear = new Ear((samples, level, pitch) => {
      this.pieces.push(samples);
      this.line.add(level, pitch);
    });
    try {
      this.rate = await ear.open();
      this.ear = ear;
      this.control.textContent = t("voice.done");
      this.said.textContent = t("voice.recording");
    } catch (error) {
      ear.close();
      const kind = { NotAllowedError: "refused", NotFoundError: "none" }[error.name];
      this.said.textContent = kind ? t(`listen.microphone.${kind}`) : t("listen.microphone.else", { reason: error.message });
    }
  }

  async finish() {
    this.close();
    this.control.textContent = t("voice.record");
    const seconds = this.pieces.reduce((sum, piece) => sum + piece.length, 0) / this.rate;
    if (seconds < SHORTEST_S) {
      this.said.textContent = t("voice.short");
      return;
    }
    this.said.textContent = t("voice.learning");
    this.control.disabled = true;
    try {
      await ask("POST", "/v1/recordings", encodeWav(this.pieces, this.rate), "audio/wav");
      this.learned = await countVoice();
      this.number++;
      this.said.textContent = this.learned >= SENTENCES ? t("voice.enough") : t("voice.learned", { count: this.learned, goal: SENTENCES });
      this.show();
    } catch (problem) {
      this.said.textContent = words.explain(problem);
    }
    this.control.disabled = false;
    announce(this.said.textContent);
  }

  close() {
    this.ear?.close();
    this.ear = null;
  }
}
