/** What the parts of a field are made of: elements with the class of their part, icons and bars. */

/** Drawn with strokes in a box of 24; in the page's own colour. */
const ICONS = {
  pause: "M9 6v12M15 6v12",
  resume: "M8 5.5v13l11-6.5z",
  continue: "M8 5.5v13l11-6.5z",
  useHere: "M8 5.5v13l11-6.5z",
  retry: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  cancel: "M7 7l10 10M17 7L7 17",
  remove: "M7 7l10 10M17 7L7 17",
  discard: "M7 7l10 10M17 7L7 17",
  file: "M7 3.5h7l4 4v13H7zM14 3.5v4h4",
  completed: "M5 12.5l5 5L19 7.5",
  failed: "M12 3.5l9 16H3zM12 10v4.5M12 17v.2",
  upload: "M12 16V5M7.5 9.5L12 5l4.5 4.5M5 19h14",
};

/** @typedef {keyof typeof ICONS} IconName */

/** An icon, hidden from screen readers. @param {IconName} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `async-upload-icon async-upload-icon-${name}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} name the part after `async-upload-` in its class
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function part(tag, name, attributes = {}, ...children) {
  const element = document.createElement(tag);
  element.className = `async-upload-${name}`;
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
}

/** A bar that says how far something is. */
export class Bar {
  /** @param {string} label */
  constructor(label) {
    this.fill = part("span", "fill");
    const attributes = { role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" };
    this.element = part("span", "bar", attributes, this.fill);
    this.shown = "";
  }

  /**
   * @param {number} fraction 0 to 1
   * @param {string} value the same in words
   */
  show(fraction, value) {
    const percent = String(Math.floor(fraction * 100));
    // Not through the `style` attribute, which a strict policy forbids.
    this.fill.style.setProperty("--async-upload-fraction", fraction.toFixed(3));
    if (this.shown === percent + value) return;
    this.shown = percent + value;
    this.element.setAttribute("aria-valuenow", percent);
    this.element.setAttribute("aria-valuetext", value);
  }
}
