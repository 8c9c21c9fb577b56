/**
 * Every text that a person meets in the browser. English; a page brings others in the `texts` attribute of
 * `<async-upload>`, as JSON with any of these keys. Words in braces are put in by the element: numbers, sizes,
 * speeds and times come formatted in the language of the document. No text has a plural, so none needs plural rules.
 */
export const TEXTS = Object.freeze({
  // The place to choose, drop and paste
  chooseFile: "Choose a file",
  chooseFiles: "Choose files",
  chooseFolder: "Choose a folder",
  replaceFile: "Choose another file",
  orDrop: "or drop it here",
  orDropMany: "or drop them here",
  dropNow: "Drop to upload",
  upTo: "At most {size}",
  allowed: "Allowed: {types}",
  images: "images",
  videos: "videos",
  sounds: "sound recordings",
  withForm: "The file will be sent together with the form.",
  readingFolder: "Reading the folder",
  alreadyThere: "This file is there already: {name}",
  alreadyThereCount: "Files that are there already: {count}",

  // What is known of one file
  sentOf: "{sent} of {size}",
  left: "{time} left",
  queued: "Waiting for its turn",
  waitRoom: "The server has no room at the moment.",
  waitBusy: "The server is busy.",
  waitServer: "The server has a problem.",
  waitFile: "The file cannot be read at the moment.",
  tryingAgain: "Trying again at {time}.",
  starting: "Starting",
  paused: "Paused",
  offline: "Waiting for the network. It will go on by itself.",
  unauthenticated: "You have been signed out. Sign in and it will go on by itself.",
  signIn: "Sign in in another tab",
  verifying: "Checking the file",
  inspecting: "Inspecting the file",
  finalizing: "Saving the file",
  completed: "Uploaded",
  cancelled: "Cancelled",
  unfinished: "Not finished: {sent} of {size}",
  pickAgain: "Choose the same file again to go on.",
  mayContinue: "Press “{action}” to go on.",

  // Sizes: as Django's filesizeformat names the units
  kilobytes: "%s KB",
  megabytes: "%s MB",
  gigabytes: "%s GB",
  terabytes: "%s TB",
  petabytes: "%s PB",
  perSecond: "{size}/s",

  // What a person can do with it
  pause: "Pause",
  resume: "Resume",
  cancel: "Cancel",
  retry: "Try again",
  undo: "Undo",
  remove: "Remove",
  continue: "Continue",
  discard: "Discard",
  actionOn: "{action}: {name}",

  // Many files
  list: "Files of “{label}”",
  uploadedOf: "Uploaded: {done} of {count}",
  failedCount: "Failed: {count}",
  notShown: "Files that are not shown: {count}",
  showMore: "Show more",
  pauseAll: "Pause all",
  resumeAll: "Resume all",
  retryFailed: "Try failed ones again",
  removeFailed: "Remove failed ones",
  removeAll: "Remove all",

  // The form waits
  submitWaiting: "The form will be sent by itself when everything is uploaded.",
  submitCancel: "Do not send it yet",
  submitStopped: "The form was not sent: some files are not uploaded. Try again or remove them.",
  submitCancelled: "The form will not be sent by itself.",

  // Said aloud, seldom
  saidAdded: "Added: {name}",
  saidAddedCount: "Files added: {count}",
  saidPercent: "{percent} uploaded",
  saidCompleted: "Uploaded: {name}",
  saidAllCompleted: "Everything is uploaded.",
  saidFailed: "{name}: {error}",
  saidRemoved: "Removed: {name}",
  saidRemovedCount: "Files removed: {count}",
  saidOnline: "The upload goes on.",

  // What went wrong
  errorTooLarge: "This file is too large ({size}). At most {limit} is allowed.",
  errorTooLargeUnknown: "This file is too large.",
  errorType: "This type of file is not allowed here. Allowed: {types}",
  errorTypeUnknown: "This type of file is not allowed here.",
  errorOneOnly: "Only one file can be uploaded here.",
  errorName: "The name of this file is not allowed. Rename it and choose it again.",
  errorPermission: "You are not allowed to upload here.",
  errorRefused: "The server refused this file: {message}",
  errorQuota: "You have too many unfinished uploads. Finish or remove some, then try again.",
  errorBusy: "The server is busy. Try again later.",
  errorStorage: "The server cannot store files at the moment. Try again later.",
  errorServer: "The server has a problem. Try again later.",
  errorUnreachable: "The upload server cannot be reached.",
  errorSignIn: "You have been signed out. Sign in, then try again.",
  errorTakenOver: "This upload goes on in another tab, window or device.",
  errorChanged: "This file has changed since the upload began. Remove it and choose it again.",
  errorDamaged: "This file arrived damaged. Try again.",
  errorEnded: "This upload has expired or was cancelled. Try again from the start.",
  errorUnreadable: "This file cannot be read. It may have been moved, changed or deleted.",
  errorFolder: "This folder cannot be read.",
  errorOther: "The upload failed: {message}",
});

/**
 * The texts of one element: its own over the defaults. Unknown keys and values that are not strings are left out.
 * @param {string | null} json the `texts` attribute
 * @returns {Readonly<Record<keyof typeof TEXTS, string>>}
 * @throws {SyntaxError} where it is not JSON
 */
export function textsFrom(json) {
  const own = json ? JSON.parse(json) : {};
  const known = Object.entries(own).filter(([key, text]) => key in TEXTS && typeof text === "string");
  return Object.freeze({...TEXTS, ...Object.fromEntries(known)});
}

/** Letters that are written from right to left. */
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;

/**
 * Put values into a text. A placeholder without a value stays as it is, so that a slip in a translation is seen.
 * @param {string} text for example "{sent} of {size}"
 * @param {Record<string, string>} [values]
 */
export function fill(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (braces, name) => {
    if (!Object.hasOwn(values, name)) return braces;
    return RIGHT_TO_LEFT.test(text + values[name]) ? isolated(values[name]) : values[name];
  });
}

/**
 * Facts beside each other; what is empty is left out.
 * @param {string[]} facts
 * @param {string} [between]
 */
export function join(facts, between = " · ") {
  const mixed = RIGHT_TO_LEFT.test(facts.join(""));
  return facts.filter(Boolean).map((fact) => (mixed ? isolated(fact) : fact)).join(between);
}

/** Keeps the order of words where both directions of writing meet: a file's name, a unit. @param {string} text */
function isolated(text) {
  return `\u2068${text}\u2069`;
}
