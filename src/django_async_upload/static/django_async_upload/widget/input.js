/** The file input that the page has: what it is called, and whether it is required. */

/**
 * An input does not ask for a file while one is uploaded for it. That it is required is kept where a clone keeps it too.
 * @param {HTMLInputElement} input
 * @param {boolean} satisfied
 */
export function satisfy(input, satisfied) {
  if (satisfied && input.required) {
    input.required = false;
    input.dataset.asyncUploadRequired = "";
    input.setAttribute("aria-required", "true");
  } else if (!satisfied && input.dataset.asyncUploadRequired !== undefined) {
    input.required = true;
    delete input.dataset.asyncUploadRequired;
    input.removeAttribute("aria-required");
  }
}

/** @param {HTMLInputElement} input */
export function labelOf(input) {
  const label = input.labels?.[0]?.textContent ?? input.getAttribute("aria-label") ?? "";
  return label.trim().replace(/\s*[:：]$/, "");
}
