// Figures: a line that moves only as the voice does, and the last minute as dots.

import { el } from "./dom.js";

const SHOWN = 240; // pieces of the line: about ten seconds

// Level as the height of a filled line, pitch as a second line; drawn when sound comes, not before.
export class VoiceLine {
  constructor(label) {
    this.canvas = el("canvas", { className: "voice-line", role: "img", "aria-label": label, height: 132 });
    this.levels = [];
    this.pitches = [];
  }

  add(level, pitch) {
    this.levels.push(Math.max(0, (level + 60) / 60));
    this.pitches.push(pitch);
    if (this.levels.length > SHOWN) {
      this.levels.shift();
      this.pitches.shift();
    }
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const colours = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const right = (index) => width - ((this.levels.length - index) * width) / SHOWN;
    const middle = height * 0.62;
    pen.fillStyle = colours.getPropertyValue("--level");
    this.levels.forEach((level, index) => {
      const half = Math.max(0.75, level * height * 0.34);
      pen.fillRect(right(index), middle - half, Math.max(1, width / SHOWN - 0.6), 2 * half);
    });
    pen.strokeStyle = colours.getPropertyValue("--pitch");
    pen.lineWidth = 2.5;
    pen.lineCap = "round";
    pen.beginPath();
    this.pitches.forEach((pitch, index) => {
      if (!pitch) return;
      // By octaves, as ears hear: from 70 to 400 Hz.
      const share = Math.log2(pitch / 70) / Math.log2(400 / 70);
      const y = height * (0.92 - 0.84 * share);
      if (this.pitches[index - 1]) pen.lineTo(right(index), y);
      else pen.moveTo(right(index) - 1, y);
      pen.lineTo(right(index), y);
    });
    pen.stroke();
  }
}

const LEFT = 104;
const ROW = 28;

// The last minute: a row for each emotion, a dot for each answer, as large as it is sure.
export function drawMinute(moments, labels, now, words, width) {
  const rows = [...labels, null];
  const height = rows.length * ROW + 28;
  const x = (at) => LEFT + ((at - (now - 60)) / 60) * (width - LEFT - 10);
  const names = rows.map((label, row) =>
    el("text", { x: LEFT - 12, y: row * ROW + 21, "text-anchor": "end", class: label ? "" : "faint" },
      label ? words.emotion(label) : words.t("minute.unsure")));
  const lines = rows.map((_, row) =>
    el("line", { x1: LEFT, x2: width, y1: row * ROW + 16, y2: row * ROW + 16, class: "grid" }));
  const dots = moments
    .filter((moment) => moment.end_s > now - 60)
    .map((moment) => {
      const row = rows.indexOf(moment.answer.emotion);
      const radius = moment.answer.emotion ? 3 + 7 * moment.answer.confidence : 3;
      return el("circle", { cx: x(moment.end_s), cy: row * ROW + 16, r: radius,
        class: moment.answer.emotion ? "dot" : "dot unsure" });
    });
  const times = (width > 420 ? [0, 30, 60] : [0, 60]).map((ago) =>
    el("text", { x: x(now - ago), y: height - 4, class: "faint",
      "text-anchor": ago === 0 ? "end" : ago === 60 ? "start" : "middle" },
      ago === 0 ? words.t("minute.now") : words.t("minute.ago", { seconds: ago })));
  return el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "minute",
    "aria-label": words.t("minute.alternative", { text: words.summarise(moments, now) }) },
    ...lines, ...names, ...dots, ...times);
}

// Shares as bars with their numbers; the numbers are the text alternative themselves.
export function drawShares(probabilities, words) {
  const rows = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  return el("dl", { className: "shares" }, rows.map(([label, share]) => {
    const bar = el("span", { className: "bar", "aria-hidden": "true" }, el("i"));
    bar.firstChild.style.width = `${100 * share}%`;
    return el("div", {}, el("dt", {}, words.emotion(label)), el("dd", {}, bar, words.tenths(share)));
  }));
}
