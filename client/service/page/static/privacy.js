// A statement of account: what left, what it cost, what is left, and how to end it.

import { ask } from "./api.js";
import { button, card, el, openDialog } from "./dom.js";
import { purposeCard } from "./welcome.js";
import * as words from "./words.js";

const { t } = words;

export async function render({ consent, refresh }) {
  const account = await ask("GET", "/v1/privacy");
  const state = consent.purposes.find((one) => one.purpose === "contribute");
  return [
    el("h1", {}, t("privacy.title")),
    el("p", { className: "lede" }, account.releases ? t("privacy.lede") : t("privacy.nothing")),
    el("div", { className: "split" },
      el("div", {}, account.budgets.map(budgetCard), logCard(account)),
      el("div", {}, purposeCard(state, refresh, t("privacy.contribute")),
        card(null, el("p", {}, t("privacy.next"))), withdrawalCard(account, refresh))),
  ];
}

function budgetCard(budget) {
  const spent = budget.spent ?? budget.epsilon;
  const share = Math.min(1, spent / budget.epsilon);
  const percent = (part) => `${Math.round(100 * part)} %`;
  const sentence = share === 0 ? t("privacy.none") : share < 1 ? t("privacy.some", { share: percent(share) }) : t("privacy.all");
  return card(t(`privacy.unit.${budget.unit}`),
    el("meter", { min: 0, max: 1, value: share, "aria-label": t("privacy.spent", { spent: percent(share), left: percent(1 - share) }) }),
    el("p", { className: "small" }, t("privacy.spent", { spent: percent(share), left: percent(1 - share) })),
    el("p", {}, sentence),
    el("details", {}, el("summary", {}, t("privacy.exact")),
      el("p", {}, t("privacy.exact.text", { spent: budget.spent === null ? "∞" : budget.spent.toFixed(3), epsilon: budget.epsilon, delta: budget.delta })),
      budget.more_rounds !== null && el("p", {}, t("privacy.rounds", { count: budget.more_rounds }))));
}

function logCard(account) {
  const seal = el("details", {}, el("summary", {}, t("privacy.seal")),
    el("p", {}, t("privacy.seal.text")), el("p", { className: "hash" }, account.ledger_sha256));
  if (!account.log.length) return card(t("privacy.log"), el("p", {}, t("privacy.nothing")), seal);
  return card(t("privacy.log"), el("p", { className: "small" }, t("privacy.log.lede")),
    el("ol", { className: "log" }, account.log.map((line) => el("li", {},
      el("p", { className: "small" }, t(line.round ? "privacy.log.where" : "privacy.log.start", line)),
      el("p", {}, t("privacy.log.line", { what: t(`kind.${line.details.kind}`), how: t(`mechanism.${line.details.mechanism}`) }), line.count > 1 ? ` ${t("privacy.log.times", line)}.` : ""),
      el("details", {}, el("summary", {}, t("privacy.log.exact")), el("pre", {}, JSON.stringify(line.details, null, 1)))))),
    seal);
}

function withdrawalCard(account, refresh) {
  if (account.withdrawn) {
    const confirmed = account.confirmed_deletions.map((one) =>
      el("p", {}, t("privacy.confirmed", { run: one.run, date: words.date(one.received) })));
    return card(t("privacy.withdraw"), el("p", {}, t("privacy.withdrawn")),
      confirmed.length ? confirmed : el("p", { className: "small" }, t("privacy.unconfirmed")));
  }
  const ask_ = () => {
    const dialog = openDialog(t("privacy.withdraw"), el("p", {}, t("privacy.withdraw.text")),
      el("p", { className: "actions" },
        button(t("privacy.withdraw.sure"), async () => {
          await ask("POST", "/v1/withdrawal");
          dialog.close();
          refresh();
        }, { className: "grave" }),
        button(t("data.erase.cancel"), () => dialog.close())));
  };
  return card(t("privacy.withdraw"), el("p", {}, t("privacy.withdraw.text")), button(`${t("privacy.withdraw.sure")} …`, ask_, { className: "grave" }));
}
