// Builds elements. Text is always text: nothing that comes from elsewhere is read as HTML.

export function el(tag, properties = {}, ...children) {
  const isShape = ["svg", "path", "circle", "line", "text", "rect", "g", "title"].includes(tag);
  const made = isShape
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && !isShape && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

let last = 0;
let waiting = null;

// At most one sentence in two seconds: whoever listens to a screen reader wants to hear the room.
export function announce(sentence) {
  const place = document.getElementById("announcer");
  clearTimeout(waiting);
  const wait = Math.max(0, last + 2000 - Date.now());
  waiting = setTimeout(() => {
    if (place.textContent === sentence) return;
    place.textContent = sentence;
    last = Date.now();
  }, wait);
}

export function button(label, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, label);
}

// A switch with its sentence: what is on, and what its being on means.
export function toggle({ id, label, on, describedBy, change }) {
  const control = el("button", {
    type: "button",
    id,
    className: "switch",
    role: "switch",
    "aria-checked": String(on),
    "aria-describedby": describedBy,
    onclick: () => change(control.getAttribute("aria-checked") !== "true", control),
  }, el("span", { className: "knob", "aria-hidden": "true" }), label);
  return control;
}

export function card(title, ...children) {
  return el("section", { className: "card" }, title && el("h2", {}, title), children);
}

// Opens a dialog that Escape and its own button close; the focus goes back by itself.
export function openDialog(title, ...children) {
  const heading = el("h2", { id: "dialog-title" }, title);
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, heading, children);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
