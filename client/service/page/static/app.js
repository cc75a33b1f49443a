// The page as a whole: which part of it is shown, and whether the device lets it in.

import { ask, forgetToken, openSession, Problem, token } from "./api.js";
import { announce, button, card, el } from "./dom.js";
import * as data from "./data.js";
import * as listen from "./listen.js";
import * as privacy from "./privacy.js";
import * as settings from "./settings.js";
import * as voice from "./voice.js";
import * as welcome from "./welcome.js";
import * as words from "./words.js";

const { t } = words;
const PAGES = { listen, voice, data, privacy, settings, welcome };
const TABS = ["listen", "voice", "data", "privacy", "settings"];
const SEEN = "sottovoce-welcomed";

let leave = null;
let shown = 0;

async function start() {
  document.documentElement.lang = words.language();
  document.getElementById("skip").textContent = t("skip");
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address behind the '#' says which page is shown
    document.getElementById("main").focus();
  });
  window.addEventListener("hashchange", show);
  await takeKey(location.hash);
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("/service-worker.js").catch(() => {});
  await show();
}

// The link's key opens a session once, and is gone from the address before anything else happens.
async function takeKey(hash) {
  const key = /key=([\w-]+)/.exec(hash)?.[1];
  if (!key) return null;
  history.replaceState(null, "", localStorage.getItem(SEEN) ? "#/listen" : "#/welcome");
  try {
    await openSession(key);
  } catch (problem) {
    return problem;
  }
  return null;
}

async function show() {
  const turn = ++shown;
  leave?.();
  leave = null;
  const main = document.getElementById("main");
  const nav = document.getElementById("nav");
  if (!token()) return close(main, nav);
  try {
    const [status, consent] = await Promise.all([ask("GET", "/v1/status"), ask("GET", "/v1/consent")]);
    if (turn !== shown) return null; // another page was asked for meanwhile
    const name = pageOf(location.hash, consent);
    showTabs(nav, name);
    document.title = `${t(name === "welcome" ? "welcome.title" : `nav.${name}`)} · Sottovoce`;
    const content = await PAGES[name].render({ status, consent, refresh: show, leaving: (work) => { leave = work; } });
    if (turn !== shown) return leave?.();
    main.replaceChildren(...content);
    if (document.activeElement === document.body || nav.contains(document.activeElement)) {
      main.focus({ preventScroll: true });
    }
    window.scrollTo(0, 0);
  } catch (problem) {
    if (turn === shown) fail(problem, main, nav);
  }
  return null;
}

function pageOf(hash, consent) {
  const name = /^#\/(\w+)/.exec(hash)?.[1];
  if (name === "welcome") localStorage.setItem(SEEN, "yes");
  if (name in PAGES) return name;
  return consent.log.length ? "listen" : "welcome";
}

function showTabs(nav, current) {
  nav.hidden = false;
  nav.setAttribute("aria-label", t("nav.label"));
  nav.replaceChildren(...TABS.map((name) =>
    el("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, t(`nav.${name}`))));
}

function fail(problem, main, nav) {
  if (!(problem instanceof Problem)) throw problem;
  if (problem.status === 401) {
    forgetToken();
    return close(main, nav);
  }
  nav.hidden = true;
  const isGone = problem.kind === "service-gone";
  const erased = problem.kind === "device-erased";
  main.replaceChildren(
    el("h1", {}, erased ? t("data.erased.title") : isGone ? t("gone.title") : t("closed.title")),
    el("p", { className: "lede" }, erased ? t("data.erased") : isGone ? t("gone.text") : words.explain(problem)),
    isGone && el("pre", {}, "sottovoce device serve FOLDER"),
    !erased && button(t("gone.again"), show, { className: "main" }),
  );
  return null;
}

function close(main, nav) {
  nav.hidden = true;
  document.title = "Sottovoce";
  const field = el("input", { id: "link", autocomplete: "off", spellcheck: false, inputMode: "url" });
  const said = el("p", { className: "said", role: "alert" });
  const open = async (event) => {
    event.preventDefault();
    const problem = await takeKey(field.value.includes("key=") ? field.value : `key=${field.value.trim()}`);
    if (!problem && token()) return show();
    said.textContent = words.explain(problem ?? new Problem({ type: "link-used", detail: "" }));
    return announce(said.textContent);
  };
  main.replaceChildren(
    el("h1", {}, t("closed.title")),
    el("p", { className: "lede" }, t("closed.text")),
    el("pre", {}, "sottovoce device serve FOLDER"),
    card(null, el("form", { onsubmit: open },
      el("label", { htmlFor: "link" }, t("closed.paste")), field,
      el("button", { className: "main", type: "submit" }, t("closed.open")), said)),
  );
  return null;
}

start();
