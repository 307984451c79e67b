// Small conveniences on top of pages that work without them. Everything listens on the document, so that parts of a
// page which htmx brings later need no set-up of their own.
"use strict";

const COPIED_MS = 2000;

async function copy(button) {
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.dataset.state = "done";
    button.textContent = "Copied";
  } catch {
    // Without permission, or on a page without TLS, the browser refuses: the value stays on the page to select.
    button.dataset.state = "failed";
    button.textContent = "Select it";
  }
  say(button.textContent);
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    delete button.dataset.state;
    button.textContent = label;
  }, COPIED_MS);
}

function say(text) {
  const voice = document.getElementById("voice");
  if (voice) voice.textContent = text;
}

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const copyButton = target?.closest("button[data-copy]");
  if (copyButton) copy(copyButton);
  const opener = target?.closest("[data-open]");
  if (opener) document.getElementById(opener.dataset.open)?.showModal();
  if (target?.closest("[data-close]")) target.closest("dialog")?.close();
  closeMenusBut(target);
});

// Whoever tabs out of a menu has left it.
document.addEventListener("focusin", (event) => closeMenusBut(event.target));

function closeMenusBut(target) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(target)) menu.open = false;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// A second press while the first is on its way would only meet a page that is out of date.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post" || form.target) return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  event.submitter?.setAttribute("aria-busy", "true");
});

window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  for (const button of document.querySelectorAll(".button[aria-busy]")) button.removeAttribute("aria-busy");
});

// <output data-preview="server-name">: shows `<name>.<base domain>` while the person types.
function preview(form) {
  const output = form.querySelector("output[data-preview='server-name']");
  if (!output) return;
  const name = form.elements.namedItem("name")?.value.trim() ?? "";
  const own = form.elements.namedItem("domain")?.value.trim() ?? "";
  const base = form.elements.namedItem("region")?.selectedOptions[0]?.dataset.baseDomain ?? "";
  output.textContent = own || `${name || "…"}.${base}`;
}

for (const kind of ["input", "change"]) {
  document.addEventListener(kind, (event) => {
    if (event.target.form) preview(event.target.form);
  });
}
document.querySelectorAll("form:has(output[data-preview])").forEach(preview);

// Times are written in UTC; people read their own.
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime][data-local]")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const style = time.dataset.local === "time" ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" };
    const words = new Intl.DateTimeFormat(undefined, style).format(moment);
    if (time.textContent === words) continue;
    time.textContent = words;
    time.title = time.dateTime;
  }
}
localTimes(document);

// After a refused form the first field to mend has the focus.
document.querySelector("[aria-invalid='true']:not([type='hidden'])")?.focus();

document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
