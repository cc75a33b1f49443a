// Live: the present answer as a sentence, the voice as a line, the last minute, and corrections.

import { ask, openStream, Problem } from "./api.js";
import { drawMinute, drawShares, VoiceLine } from "./charts.js";
import { announce, button, card, el, openDialog } from "./dom.js";
import { Ear } from "./sound.js";
import * as words from "./words.js";

const { t } = words;
const KEPT = 240; // moments that are listed or drawn
const WAITING = 4; // sound that waits to be sent, in seconds, before pieces are left out
const PAUSE_S = 1.2; // silence after which it may be asked whether an answer was right

export async function render({ status, consent, leaving }) {
  const allowed = consent.purposes.find((one) => one.purpose === "recognise").allowed;
  if (!allowed) {
    return [el("h1", {}, t("listen.title")), el("p", { className: "lede" }, t("listen.no-consent")),
      el("a", { className: "button main", href: "#/welcome" }, t("listen.allow"))];
  }
  const live = new Live(status);
  leaving(() => live.stop());
  return live.parts();
}

class Live {
  constructor(status) {
    this.status = status;
    this.moments = [];
    this.pieces = []; // level and pitch of the last seconds, for what a moment sounded like
    this.quiet = 0;
    this.line = new VoiceLine(t("listen.line"));
    this.answer = el("p", { className: "answer", id: "answer" }, t("listen.idle"));
    this.more = el("p", { className: "certainty" }, t("listen.idle.more"));
    this.set = el("ul", { className: "chips", hidden: true });
    this.setTitle = el("p", { className: "small", hidden: true });
    this.trouble = el("p", { className: "said", role: "alert" });
    this.minute = el("figure", {}, el("p", { className: "small" }, t("minute.empty")));
    this.right = el("div");
    this.list = el("ol", { className: "moments" }, el("li", { className: "faint" }, t("listen.moments.none")));
    this.control = button(t("listen.start"), () => (this.ear ? this.stop() : this.start()), { className: "main large", id: "listen" });
  }

  parts() {
    return [
      el("h1", { className: "unseen" }, t("listen.title")),
      el("div", { className: "split" },
        el("div", {},
          el("section", { className: "stage", "aria-labelledby": "answer" }, this.answer, this.more, this.setTitle, this.set,
            el("div", { className: "labelled" }, this.line.canvas,
              el("span", { className: "level-label" }, t("listen.level")), el("span", { className: "pitch-label" }, t("listen.pitch"))),
            el("p", { className: "actions" }, this.control), this.trouble),
          !this.status.own_normaliser && el("section", { className: "card warn" }, el("p", {}, t("listen.stranger")),
            el("a", { className: "button", href: "#/voice" }, t("listen.stranger.go"))),
          this.right),
        el("div", {}, card(t("listen.minute"), this.minute), card(t("listen.moments"), this.list))),
    ];
  }

  async start() {
    this.trouble.textContent = "";
    this.answer.textContent = t("listen.starting");
    this.control.disabled = true;
    const ear = new Ear((samples, level, pitch) => this.take(samples, level, pitch));
    try {
      this.rate = await ear.open();
      this.ear = ear;
      this.socket = openStream(this.rate);
      this.socket.onmessage = ({ data }) => this.hear(JSON.parse(data));
      this.socket.onclose = () => this.stop();
      this.answer.textContent = t("listen.first");
      this.more.textContent = "";
      this.control.textContent = t("listen.stop");
      this.sent = 0;
      showState(true);
      announce(t("listen.first"));
    } catch (error) {
      ear.close();
      this.answer.textContent = t("listen.idle");
      const kind = { NotAllowedError: "refused", NotFoundError: "none" }[error.name];
      this.trouble.textContent = kind ? t(`listen.microphone.${kind}`) : t("listen.microphone.else", { reason: error.message });
    }
    this.control.disabled = false;
  }

  stop() {
    if (!this.ear) return;
    this.ear.close();
    this.ear = null;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send("stop");
    this.control.textContent = t("listen.start");
    this.answer.textContent = t("listen.ended");
    this.more.textContent = t("listen.idle.more");
    this.set.hidden = this.setTitle.hidden = true;
    showState(false);
    announce(t("listen.ended"));
  }

  take(samples, level, pitch) {
    if (!this.ear) return;
    this.line.add(level, pitch);
    const seconds = samples.length / this.rate;
    this.quiet = level < -45 ? this.quiet + seconds : 0;
    if (this.quiet > PAUSE_S) this.ask();
    const waits = this.socket.bufferedAmount / (4 * this.rate);
    // Sound is left out rather than held back: an answer to what was said long ago helps nobody.
    if (this.socket.readyState !== WebSocket.OPEN || waits > WAITING) return;
    this.socket.send(samples);
    // By what was sent, as the service counts, so that both have the same clock.
    this.sent += seconds;
    this.pieces.push({ at: this.sent, level, pitch });
    if (this.pieces.length > 4096) this.pieces.splice(0, 1024);
  }

  hear(message) {
    if (message.type === "problem") {
      this.trouble.textContent = words.explain(new Problem(message.problem));
      return;
    }
    if (message.type !== "result" || !this.ear) return;
    const steady = steadyAnswer(message);
    const said = words.sentence(steady);
    this.answer.textContent = said;
    this.answer.classList.toggle("unsure", steady.abstained);
    this.more.textContent = words.certainty(steady);
    this.showSet(steady);
    announce(said);
    if (message.backlog_s > 1.5) this.trouble.textContent = t("listen.backlog", { seconds: Math.round(message.backlog_s) });
    else this.trouble.textContent = "";
    this.moments = [...this.moments, { ...message, answer: steady, sentence: said }].slice(-KEPT);
    this.minute.replaceChildren(drawMinute(this.moments, this.status.labels, message.end_s, words, Math.max(280, this.minute.clientWidth)),
      el("figcaption", { className: "small" }, t("minute.caption")));
    this.showMoments();
  }

  showSet(answer) {
    // One name says no more than the sentence does, and all of them say nothing.
    const says = answer.set.length > 1 && answer.set.length < this.status.labels.length;
    const names = says ? answer.set : [];
    this.set.hidden = this.setTitle.hidden = !names.length;
    this.set.replaceChildren(...names.map((label) => el("li", {}, words.emotion(label))));
    const count = Math.round(10 * (answer.coverage ?? 0.9));
    this.setTitle.textContent = t("listen.set.else", { count });
  }

  showMoments() {
    // Windows overlap: the same answer twice in a row is one moment.
    const isNext = (answer, next) => !next || next.answer.emotion !== answer.emotion || next.answer.abstention !== answer.abstention;
    const latest = this.moments.filter(({ answer }, index) =>
      answer.abstention !== "no speech" && answer.abstention !== "unusable recording" && isNext(answer, this.moments[index + 1])).slice(-6).reverse();
    if (!latest.length) return;
    // A list that is in use is left as it is: what is about to be tapped must not move away.
    if (this.list.contains(document.activeElement)) return;
    this.list.replaceChildren(...latest.map((moment) => el("li", {},
      button(t("listen.moment", { at: clock(moment.end_s), sentence: moment.sentence }), () => this.open(moment), { className: "row" }))));
  }

  // After a pause in speech, about the last answer, and never twice about one.
  ask() {
    const last = this.moments.findLast(({ answer }) => answer.emotion && answer.moment);
    if (!last || last.asked || this.right.firstChild) return;
    last.asked = true;
    const done = () => this.right.replaceChildren();
    this.right.append(card(t("listen.right"), el("p", {}, t("listen.right.text", { sentence: last.sentence })),
      correction(this.status.labels, last, done), button(t("listen.skip"), done, { className: "plain" })));
  }

  open(moment) {
    const { answer } = moment;
    const pieces = this.pieces.filter(({ at }) => at > moment.start_s && at <= moment.end_s);
    const pitches = pieces.map(({ pitch }) => pitch).filter(Boolean).sort((a, b) => a - b);
    const loudest = Math.max(-100, ...pieces.map(({ level }) => level));
    const dialog = openDialog(t("moment.title"),
      el("p", { className: "answer small-answer" }, moment.sentence),
      el("p", {}, words.certainty(answer)),
      el("p", { className: "small" }, t("moment.when", { from: moment.start_s.toFixed(0), to: moment.end_s.toFixed(0) })),
      Object.keys(answer.probabilities).length > 0 && [el("h3", {}, t("moment.shares")),
        el("p", { className: "small" }, t("moment.shares.note")), drawShares(answer.probabilities, words)],
      pieces.length > 0 && [el("h3", {}, t("moment.heard")), el("p", {}, t("moment.heard.text", {
        level: Math.round(-loudest),
        pitch: pitches.length > 3 ? t("moment.pitch", { hertz: Math.round(pitches[pitches.length >> 1]) }) : t("moment.pitch.none"),
        flaws: answer.quality.length ? t("moment.flaws", { flaws: answer.quality.join(", ") }) : "",
      }))],
      answer.moment ? [el("h3", {}, t("moment.correct")), correction(this.status.labels, moment, () => {})] : null,
      el("p", { className: "small" }, answer.moment ? t("moment.kept") : t("moment.not-kept")),
      button(t("moment.close"), () => dialog.close(), { className: "main" }));
  }
}

// What to show: the emotion that is steady over windows, with the window's own set and moment.
function steadyAnswer({ emotion, probabilities, answer }) {
  if (emotion) return { ...answer, emotion, probabilities, confidence: probabilities[emotion], abstained: false, abstention: null };
  if (answer.abstained) return answer;
  return { ...answer, emotion: null, probabilities, abstained: true, abstention: "not sure enough" };
}

// On top of every page: whether anything is listened to now.
function showState(isOn) {
  const state = document.getElementById("state");
  state.textContent = isOn ? t("state.on") : "";
  state.classList.toggle("on", isOn);
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

// What it was, as chips; what was learned can be taken back at once.
export function correction(labels, moment, done) {
  const place = el("div", { className: "correction" });
  const said = el("p", { className: "said", role: "status" });
  const choose = async (emotion) => {
    try {
      const { name } = await ask("POST", "/v1/corrections", { moment: moment.answer.moment, emotion });
      moment.asked = true;
      said.textContent = t("listen.learned", { name: words.emotion(emotion) });
      const undo = button(t("listen.undo"), async () => {
        await ask("DELETE", `/v1/recordings/${encodeURIComponent(name)}`);
        said.textContent = t("listen.undone");
        undo.remove();
      }, { className: "plain" });
      place.replaceChildren(said, undo);
      setTimeout(done, 6000);
    } catch (problem) {
      said.textContent = words.explain(problem);
    }
  };
  place.append(el("div", { className: "chips" }, labels.map((label) => button(words.emotion(label), () => choose(label), {
    className: label === moment.answer.emotion ? "chip likely" : "chip",
  }))), said);
  return place;
}
