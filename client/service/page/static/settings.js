// What can be chosen: language, care, how long a moment is held, which apps may ask.

import { ask } from "./api.js";
import { announce, button, card, el } from "./dom.js";
import * as words from "./words.js";

const { t } = words;

export async function render({ status, refresh }) {
  const [chosen, { apps }] = await Promise.all([ask("GET", "/v1/settings"), ask("GET", "/v1/apps")]);
  const save = async (changes) => {
    Object.assign(chosen, await ask("PUT", "/v1/settings", { ...chosen, ...changes }));
    announce(t("settings.saved"));
  };
  return [
    el("h1", {}, t("settings.title")),
    el("div", { className: "split" },
      el("div", {},
        card(null, choice(t("settings.language"), null, words.languages(), words.language(), (code) => {
          words.chooseLanguage(code);
          document.getElementById("skip").textContent = t("skip");
          refresh();
        })),
        card(null, choice(t("settings.care"), t("settings.care.lede"), [
          ["", t("settings.care.usual")], ["0.6", t("settings.care.bold")], ["0.3", t("settings.care.careful")],
        ], String(chosen.risk ?? ""), (value) => save({ risk: value === "" ? null : Number(value) }))),
        card(null, choice(t("settings.set"), null,
          [["0.8", t("settings.set.80")], ["0.9", t("settings.set.90")], ["0.95", t("settings.set.95")]],
          String(chosen.coverage), (value) => save({ coverage: Number(value) }))),
        card(null, choice(t("settings.hold"), t("settings.hold.lede"),
          ["0", "60", "120", "600"].map((seconds) => [seconds, t(`settings.hold.${seconds}`)]),
          String(chosen.moment_s), (value) => save({ moment_s: Number(value) })))),
      el("div", {},
        card(t("settings.consent"), el("a", { className: "button", href: "#/welcome" }, t("settings.consent.go"))),
        appsCard(apps, refresh),
        card(t("settings.train"), el("p", {}, t("settings.train.text"))),
        card(t("settings.about"), el("p", { className: "small break" }, t("settings.about.text", {
          user: status.user, use: status.intended_use ?? "–", version: status.version, model: status.model.slice(0, 12),
        }))))),
  ];
}

function choice(title, lede, options, current, change) {
  const name = `choice-${title}`;
  return el("fieldset", {}, el("legend", {}, title), lede && el("p", { className: "small" }, lede),
    options.map(([value, label]) => el("label", { className: "option" },
      el("input", { type: "radio", name, value, checked: value === current, onchange: () => change(value) }), label)));
}

function appsCard(apps, refresh) {
  const rows = apps.map((app) => el("li", {},
    el("div", {}, el("p", { className: "break" }, app.name), el("p", { className: "small" },
      t("settings.apps.since", { scopes: app.scopes.map((scope) => t(`scope.${scope}`)).join(", "), date: words.date(app.created_at) }))),
    button(t("settings.apps.revoke"), async () => {
      await ask("DELETE", `/v1/apps/${encodeURIComponent(app.name)}`);
      announce(t("settings.apps.revoked", { name: app.name }));
      refresh();
    }, { "aria-label": `${t("settings.apps.revoke")}: ${app.name}` })));
  return card(t("settings.apps"), rows.length ? el("ul", { className: "recordings" }, rows) : el("p", {}, t("settings.apps.none")),
    el("p", { className: "small" }, t("settings.apps.add")), el("pre", {}, "sottovoce device token create FOLDER APP --scope recognise"));
}
