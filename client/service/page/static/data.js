// What is kept, one by one: seen, taken along, forgotten; or erased, all of it.

import { ask, forgetToken } from "./api.js";
import { announce, button, card, el, openDialog } from "./dom.js";
import * as words from "./words.js";

const { t } = words;

export async function render({ status, refresh }) {
  const { recordings } = await ask("GET", "/v1/recordings");
  const count = recordings.length;
  const kept = count === 0 ? t("data.none") : count === 1 ? t("data.one") : t("data.count", { count });
  return [
    el("h1", {}, t("data.title")),
    el("p", { className: "lede" }, kept),
    el("div", { className: "split" },
      el("div", {}, count > 0 && card(null, el("ul", { className: "recordings" },
        recordings.map((one, index) => recordingRow(one, index, refresh))))),
      el("div", {}, exportCard(), eraseCard(status))),
  ];
}

function recordingRow(one, index, refresh) {
  const title = one.emotion ? t("data.labelled", { name: words.emotion(one.emotion) }) : t("data.unlabelled");
  const uses = one.uses.map((use) => t(`use.${use}`)).join("; ");
  return el("li", {},
    el("div", {}, el("p", {}, title), el("p", { className: "small" }, t("data.uses", { uses }))),
    button(t("data.forget"), async () => {
      await ask("DELETE", `/v1/recordings/${encodeURIComponent(one.name)}`);
      announce(t("data.forgotten"));
      refresh();
    }, { "aria-label": t("data.forget.label", { number: index + 1 }) }));
}

function exportCard() {
  const said = el("p", { className: "said", role: "status" });
  const control = button(t("data.export.do"), async () => {
    control.disabled = true;
    said.textContent = t("data.export.running");
    try {
      const address = URL.createObjectURL(await ask("GET", "/v1/export"));
      el("a", { href: address, download: "my-data.zip" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10_000);
      said.textContent = t("data.export.done");
    } catch (problem) {
      said.textContent = words.explain(problem);
    }
    control.disabled = false;
  }, { id: "export" });
  return card(t("data.export"), el("p", {}, t("data.export.text")), control, said);
}

function eraseCard(status) {
  const open = () => {
    const field = el("input", { id: "erase-name", autocomplete: "off", spellcheck: false });
    const said = el("p", { className: "said", role: "alert" });
    const sure = button(t("data.erase.sure"), async () => {
      try {
        await ask("POST", "/v1/erasure", { user: field.value });
        dialog.close();
        forgetToken();
        document.getElementById("nav").hidden = true;
        document.getElementById("main").replaceChildren(el("h1", {}, t("data.erased.title")), el("p", { className: "lede" }, t("data.erased")));
      } catch (problem) {
        said.textContent = words.explain(problem);
      }
    }, { className: "grave", disabled: true, id: "erase-sure" });
    field.addEventListener("input", () => { sure.disabled = field.value !== status.user; });
    const dialog = openDialog(t("data.erase"), el("p", {}, t("data.erase.text")),
      el("label", { htmlFor: "erase-name" }, t("data.erase.type", { name: status.user })), field,
      el("p", { className: "actions" }, sure, button(t("data.erase.cancel"), () => dialog.close())), said);
  };
  return card(t("data.erase"), el("p", {}, t("data.erase.text")), button(t("data.erase.do"), open, { className: "grave", id: "erase" }));
}
