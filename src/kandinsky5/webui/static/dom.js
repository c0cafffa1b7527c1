// Elements: found by id, made with attributes and children. Text goes in as text, never as markup.

export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A button whose work is being done. It keeps the focus, which a disabled one loses; whoever listens to it asks.
export function isBusy(button) {
  return button.getAttribute("aria-disabled") === "true";
}

export function setBusy(button, busy) {
  button.setAttribute("aria-disabled", String(busy));
}

// For who looks and for who listens; said again only when it changes.
export function say(text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text;
}
