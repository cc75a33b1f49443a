// What this is, what it is not for, and consent, purpose by purpose, each off until turned on.

import { ask } from "./api.js";
import { announce, card, el, toggle } from "./dom.js";
import * as words from "./words.js";

const { t } = words;

export async function render({ consent }) {
  return [
    el("h1", {}, t("welcome.title")),
    el("p", { className: "lede" }, t("welcome.lede")),
    el("div", { className: "pairs" },
      card(t("welcome.notice.title"), el("p", {}, t("welcome.notice"))),
      card(t("welcome.not.title"), el("p", {}, t("welcome.not")))),
    el("h2", { className: "part" }, t("welcome.consent.title")),
    el("p", {}, t("welcome.consent.lede")),
    el("div", { className: "thirds" }, consent.purposes.map((state) => purposeCard(state))),
    el("p", { className: "actions" },
      el("a", { className: "button main", href: "#/listen" }, t("welcome.start")),
      el("a", { className: "button", href: "#/privacy" }, t("welcome.look"))),
  ];
}

// A purpose with its switch, for this page and for the one that the purpose belongs to.
export function purposeCard(state, changed = () => {}, title = t(`purpose.${state.purpose}`)) {
  const { purpose } = state;
  const told = el("p", { className: "told", id: `told-${purpose}` });
  const failed = el("p", { className: "said", role: "alert" });
  const tell = (now) => {
    const since = now.allowed && now.decided_at ? ` ${t("purpose.since", { date: words.date(now.decided_at) })}` : "";
    told.textContent = now.changed ? t("purpose.changed") : t(`purpose.${now.allowed ? "on" : "off"}.${purpose}`) + since;
  };
  const control = toggle({
    id: `switch-${purpose}`,
    label: title,
    on: state.allowed,
    describedBy: `told-${purpose} text-${purpose}`,
    change: async (allowed, made) => {
      try {
        const all = await ask("PUT", `/v1/consent/${purpose}`, { allowed, text_version: state.text_version });
        const now = all.purposes.find((one) => one.purpose === purpose);
        made.setAttribute("aria-checked", String(now.allowed));
        failed.textContent = "";
        tell(now);
        announce(told.textContent);
        changed(now);
      } catch (problem) {
        failed.textContent = words.explain(problem);
      }
    },
  });
  tell(state);
  return el("section", { className: "card purpose" }, control, told,
    // As the record names it, whatever language the page has: that is what was agreed to.
    el("p", { className: "text", id: `text-${purpose}`, lang: "en" }, state.text), failed);
}
