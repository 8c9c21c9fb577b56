/**
 * What the elements of a page share towards its forms and its window: a form is held back while its files are uploaded and then
 * sent by itself, as the same button would have sent it; a page with an upload under way asks before it is left.
 *
 * `form.submit()` called by a script cannot be held back, because no event tells of it. `form.requestSubmit()` can.
 */
import { RECEIPT } from "./selection.js";

/**
 * An element as seen from here.
 * @typedef {object} Field
 * @property {HTMLFormElement | null} form
 * @property {boolean} busy something is still to come by itself
 * @property {boolean} atStake something would be lost if the page was left
 * @property {boolean} broken a file is there that could not be uploaded
 * @property {() => void} settle makes ready what is posted
 * @property {() => void} resume what was paused goes on
 * @property {(waiting: boolean) => void} wait says that the form waits for this field, or no longer
 * @property {(focus: boolean) => void} stop says that the form was not sent because of this field
 * @property {() => void} reset
 */

/** @type {Set<Field>} */
const fields = new Set();
/** Forms that are to be sent, and by which button. @type {Map<HTMLFormElement, HTMLElement | null>} */
const waiting = new Map();
let asks = false;

/** @param {Field} field in the page from now on */
export function guard(field) {
  if (!fields.size) {
    // In the capture phase and on the window: before any listener of the page sends the form in its own way.
    window.addEventListener("submit", onSubmit, true);
    window.addEventListener("reset", onReset);
    window.addEventListener("formdata", onFormData);
  }
  fields.add(field);
}

/** @param {Field} field no longer in the page */
export function unguard(field) {
  fields.delete(field);
  changed(field);
}

/** Something of the field's files has changed: perhaps its form can be sent. @param {Field} field */
export function changed(field) {
  askBeforeLeaving([...fields].some(({ atStake }) => atStake));
  for (const form of waiting.keys()) if (!field.form || field.form === form) advance(form);
}

/** The person does not want the form to be sent by itself after all. @param {HTMLFormElement | null} form */
export function keep(form) {
  if (!form) return;
  waiting.delete(form);
  for (const field of of(form)) field.wait(false);
}

/** @param {HTMLFormElement} form */
function of(form) {
  return [...fields].filter((field) => field.form === form);
}

/** @param {SubmitEvent} event */
function onSubmit(event) {
  const form = /** @type {HTMLFormElement} */ (event.target);
  const own = of(form);
  for (const field of own) {
    field.settle();
    field.resume();
  }
  if (!own.some(({ busy, broken }) => busy || broken)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  waiting.set(form, event.submitter);
  for (const field of own) field.wait(field.busy);
  advance(form, true);
}

/**
 * @param {HTMLFormElement} form
 * @param {boolean} [pressed] the person is looking: the focus may move
 */
function advance(form, pressed = false) {
  const own = of(form);
  const broken = own.filter((field) => field.broken);
  if (broken.length) {
    keep(form);
    broken.forEach((field, index) => field.stop(pressed && index === 0));
  } else if (!own.some(({ busy }) => busy)) {
    const submitter = waiting.get(form) ?? null;
    keep(form);
    // In a task of its own: whoever listens to the upload's last event is done by then.
    setTimeout(() => form.isConnected && form.requestSubmit(ownedBy(submitter, form) ? submitter : null));
  } else {
    for (const field of own) field.wait(field.busy);
  }
}

/**
 * @param {HTMLElement | null} submitter
 * @param {HTMLFormElement} form
 */
function ownedBy(submitter, form) {
  return !!submitter && submitter.isConnected && /** @type {HTMLButtonElement} */ (submitter).form === form;
}

/** The receipts of a field are posted as one value: Django takes 1,000 values of a form. @param {FormDataEvent} event */
function onFormData({ formData }) {
  for (const name of new Set(formData.keys())) {
    const receipts = name.startsWith(RECEIPT) ? formData.getAll(name) : [];
    if (receipts.length > 1) formData.set(name, receipts.join(","));
  }
}

/** @param {Event} event */
function onReset(event) {
  const form = event.target;
  // A listener after this one may still call it off.
  setTimeout(() => {
    if (event.defaultPrevented || !(form instanceof HTMLFormElement)) return;
    keep(form);
    for (const field of of(form)) field.reset();
  });
}

/** The listener is there only while it is needed: with it, a browser does not keep the page for "Back". @param {boolean} needed */
function askBeforeLeaving(needed) {
  if (needed === asks) return;
  asks = needed;
  if (needed) window.addEventListener("beforeunload", ask);
  else window.removeEventListener("beforeunload", ask);
}

/** @param {BeforeUnloadEvent} event */
function ask(event) {
  event.preventDefault();
  event.returnValue = true; // browsers before 2024 ask only so
}
