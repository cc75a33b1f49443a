// Words of the page, in the language that its reader chose, and sentences made of them.

import english from "./words/en.js";
import german from "./words/de.js";

const LANGUAGES = { en: english, de: german };
const CHOSEN = "sottovoce-language";

export function language() {
  const chosen = localStorage.getItem(CHOSEN);
  if (chosen in LANGUAGES) return chosen;
  return navigator.language?.startsWith("de") ? "de" : "en";
}

export const languages = () => Object.entries(LANGUAGES).map(([code, words]) => [code, words["language.name"]]);

export function chooseLanguage(code) {
  localStorage.setItem(CHOSEN, code);
  document.documentElement.lang = code;
}

export function t(key, values = {}) {
  const text = LANGUAGES[language()][key] ?? english[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const emotion = (label) => t(`emotion.${label}`).replace(/^emotion\./, "");

// What it sounds like, with its doubt: "Sounds sad, or perhaps neutral."
export function sentence(answer) {
  if (answer.abstained) {
    const few = answer.set.length > 0 && answer.set.length <= 3;
    return answer.abstention === "not sure enough" && !few ? t("unsure.anything") : t(`unsure.${answer.abstention}`, { names: joined(answer.set) });
  }
  const others = answer.set.filter((label) => label !== answer.emotion).slice(0, 2);
  if (!others.length) return t("sounds.sure", { name: emotion(answer.emotion) });
  return t("sounds.or", { name: emotion(answer.emotion), others: joined(others) });
}

// A share in words: "about 7 times in 10". Never a number alone.
export const tenths = (share) => t("times", { count: Math.max(share > 0 ? 1 : 0, Math.round(10 * share)), share: Math.round(100 * share) });

export function certainty(answer) {
  if (answer.abstained) return answer.next_step ? t("unsure.step", { step: stepFor(answer) }) : "";
  const whose = answer.own_normaliser ? "certain.own" : "certain.others";
  return t(whose, { count: Math.round(10 * answer.confidence) });
}

function stepFor(answer) {
  const known = `step.${answer.abstention}`;
  const text = t(known);
  return text === known ? answer.next_step : text;
}

export function joined(labels) {
  const names = labels.map(emotion);
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} ${t("or")} ${names.at(-1)}`;
}

export function summarise(moments, now) {
  const recent = moments.filter((moment) => moment.end_s > now - 60 && moment.answer.emotion);
  if (!recent.length) return t("minute.nothing");
  const counts = {};
  for (const { answer } of recent) counts[answer.emotion] = (counts[answer.emotion] ?? 0) + 1;
  const parts = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return parts.map(([label, count]) => t("minute.part", { name: emotion(label), count })).join(", ");
}

export const date = (text) => new Date(text).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });

// What went wrong, and what to do, where there are words of this page for it.
export function explain(problem) {
  const fault = t(`fault.${problem.value}`);
  if (problem.kind === "unusable-recording" && fault !== `fault.${problem.value}`) return fault;
  const known = t(`problem.${problem.kind}`);
  if (known !== `problem.${problem.kind}`) return known;
  return [problem.message, problem.wayOut && t("problem.way-out", { step: problem.wayOut })].filter(Boolean).join(" ");
}
