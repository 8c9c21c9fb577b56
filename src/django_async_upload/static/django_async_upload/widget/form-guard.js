/**
 * What the elements of a page share towards its forms and its window: a form is held back while its files are uploaded and then
 * sent by itself, as the same button would have sent it; a page with an upload under way asks before it is left.
 *
 * `form.submit()` called by a script cannot be held back, because no event tells of it. `form.requestSubmit()` can.
 */
import { renewToken } from "./csrf.js";
import { isTokenOld } from "./page.js";
import { isParkedAtStake, parking } from "./places.js";
import { RECEIPT } from "./receipts.js";

/**
 * An element as seen from here.
 * @typedef {object} Field
 * @property {HTMLFormElement | null} form
 * @property {boolean} busy something is still to come by itself
 * @property {boolean} atStake something would be lost if the page was left
 * @property {boolean} broken a file is there that could not be uploaded
 * @property {() => void} settle makes ready what is posted
 * @property {() => void} sent its receipts go out with the form now
 * @property {() => void} restored the browser has brought the page back as it was when it was left
 * @property {() => void} resume what was paused goes on
 * @property {(waiting: boolean) => void} wait says that the form waits for this field, or no longer
 * @property {(focus: boolean, button: HTMLElement | null) => void} stop says that the form was not sent because of this field, beside
 *   the button, too, if there is one
 * @property {() => void} reset
 */

/** @type {Set<Field>} */
const fields = new Set();
/** Forms that are to be sent, and by which button. @type {Map<HTMLFormElement, HTMLElement | null>} */
const waiting = new Map();
/** Forms that have waited and are being sent. @type {Set<HTMLFormElement>} */
const going = new Set();
/** The one that is sent in this moment. @type {HTMLFormElement | null} */
let passing = null;
/** A form, or a button, that has it is not held back. */
const IGNORE = "data-async-upload-ignore";
let asks = false;

/** @param {Field} field in the page from now on */
export function guard(field) {
  if (!fields.size) {
    // In the capture phase and on the window: before any listener of the page sends the form in its own way.
    window.addEventListener("submit", onSubmit, true);
    window.addEventListener("reset", onReset);
    window.addEventListener("formdata", onFormData);
    window.addEventListener("pageshow", onPageShow);
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
  weigh();
  for (const form of waiting.keys()) if (!field.form || field.form === form) advance(form);
}

function weigh() {
  askBeforeLeaving(isParkedAtStake() || [...fields].some(({ atStake }) => atStake));
}

parking.addEventListener("change", weigh);

/** The user does not want the form to be sent by itself after all. @param {HTMLFormElement | null} form */
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
  const submitter = /** @type {HTMLButtonElement | null} */ (event.submitter);
  if (!own.length || isDialog(form, submitter)) return;
  for (const field of own) field.settle();
  if (form === passing || isFree(form, submitter)) return own.forEach((field) => field.sent());
  for (const field of own) field.resume();
  if (!going.has(form) && !isTokenOld(form) && !own.some(({ busy, broken }) => busy || broken)) {
    return own.forEach((field) => field.sent());
  }
  event.preventDefault();
  event.stopImmediatePropagation();
  if (going.has(form)) return;
  waiting.set(form, submitter);
  for (const field of own) field.wait(field.busy);
  advance(form, true);
}

/**
 * It saves nothing, so nothing has to be waited for: "Back" in a wizard, "Cancel".
 * @param {HTMLFormElement} form
 * @param {HTMLButtonElement | null} submitter
 */
function isFree(form, submitter) {
  return !!submitter?.formNoValidate || !!submitter?.hasAttribute(IGNORE) || form.hasAttribute(IGNORE);
}

/**
 * It closes a dialogue and sends nothing.
 * @param {HTMLFormElement} form
 * @param {HTMLButtonElement | null} submitter
 */
function isDialog(form, submitter) {
  return (submitter?.getAttribute("formmethod") ?? form.getAttribute("method"))?.toLowerCase() === "dialog";
}

/**
 * @param {HTMLFormElement} form
 * @param {boolean} [pressed] the user has just pressed a button: the focus may move
 */
function advance(form, pressed = false) {
  const own = of(form);
  const broken = own.filter((field) => field.broken);
  if (broken.length) {
    const submitter = waiting.get(form) ?? null;
    keep(form);
    broken.forEach((field, index) => field.stop(pressed && index === 0, index === 0 ? submitter : null));
  } else if (!own.some(({ busy }) => busy)) {
    const submitter = waiting.get(form) ?? null;
    keep(form);
    going.add(form);
    // In a task of its own: listeners to the upload's last event are done by then.
    setTimeout(() => void send(form, submitter));
  } else {
    for (const field of own) field.wait(field.busy);
  }
}

/**
 * @param {HTMLFormElement} form
 * @param {HTMLElement | null} submitter
 */
async function send(form, submitter) {
  await renewToken(form);
  going.delete(form);
  if (!form.isConnected) return;
  passing = form;
  form.requestSubmit(ownedBy(submitter, form) ? submitter : null);
  passing = null;
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

/** @param {PageTransitionEvent} event */
function onPageShow({ persisted }) {
  if (persisted) for (const field of fields) field.restored();
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
