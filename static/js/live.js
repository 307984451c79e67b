// The parts of a page that change by themselves. htmx fetches them; what is new is merged into what is there, so that
// scrolling, focus, open menus, selected text and running animations stay as the reader left them.
"use strict";

// What a person or this page did to an element, and the server's answer does not know.
const OWN_ATTRIBUTES = new Set(["open", "aria-busy", "class", "data-sent", "title"]);
const NEAR_END_PX = 40;

const keyOf = (node) => node.id || node.dataset?.key || "";
const alike = (one, other) => one.nodeName === other.nodeName && keyOf(one) === keyOf(other);
const atEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;

function mergeAttributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !OWN_ATTRIBUTES.has(name)) old.removeAttribute(name);
  }
}

// Whether what stands in the element was written by this page (a local time, "Copied", a clock that ticks).
function ownText(old, fresh) {
  const { local, copy, ticks } = fresh.dataset;
  if (local !== undefined) return old.dateTime === fresh.dateTime;
  return ticks !== undefined || (copy !== undefined && old.dataset.copy === copy);
}

function merge(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.isEqualNode(fresh)) return;
  const keepText = ownText(old, fresh);
  const follow = old.matches("[data-follow]") && atEnd(old);
  if (!old.matches("[data-copy]") || !keepText) mergeAttributes(old, fresh);
  if (!keepText) mergeChildren(old, fresh);
  if (follow) old.scrollTop = old.scrollHeight;
}

function drop(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function mergeChildren(old, fresh) {
  const wanted = new Set([...fresh.children].map(keyOf));
  for (const child of [...old.children]) {
    if (keyOf(child) && !wanted.has(keyOf(child))) child.remove();
  }
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    let match = at;
    while (keyOf(next) && match && !alike(match, next)) match = match.nextSibling;
    if (match && alike(match, next)) {
      while (at !== match) at = drop(at);
      merge(match, next);
      at = match.nextSibling;
    } else {
      old.insertBefore(next, at);
    }
  }
  while (at) at = drop(at);
}

htmx.defineExtension("merge", {
  isInlineSwap: (style) => style === "merge",
  handleSwap(style, target, fragment) {
    if (style !== "merge") return false;
    const parts = [...fragment.children].filter((part) => part.id && document.getElementById(part.id));
    // Something else came: signed out meanwhile, for example. The whole page knows what to show.
    if (!parts.some((part) => part.id === target.id)) location.reload();
    for (const part of parts) merge(document.getElementById(part.id), part);
    return [target];
  },
});

// A connection that is lost (Hearth restarts, the laptop slept) is said once, and asking goes on by itself.
function lost(isLost) {
  const place = document.getElementById("lost");
  const words = isLost ? "No answer from Hearth just now. This page keeps asking and goes on by itself." : "";
  if (place && place.textContent !== words) place.textContent = words;
}

for (const kind of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(kind, () => lost(true));
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status >= 500 || status === 429) lost(true);
  else location.reload();
});

// The time of the step that runs. The server says how long it was at its answer; from there the page counts.
const counted = new WeakMap();

function tick() {
  for (const clock of document.querySelectorAll("[data-ticks]")) {
    const said = Number(clock.dataset.ticks);
    if (counted.get(clock)?.said !== said) counted.set(clock, { said, at: performance.now() });
    const seconds = Math.floor(said + (performance.now() - counted.get(clock).at) / 1000);
    const words = seconds < 100 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
    if (clock.textContent !== words) clock.textContent = words;
  }
}

function settle() {
  localTimes(document);
  tick();
}

document.addEventListener("htmx:afterSwap", () => {
  lost(false);
  settle();
});
setInterval(tick, 250);
for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
settle();
