/** Whether uploads get through from the page of a field; where they do not, its input is a plain one. */

const NO_WEBSOCKET = { code: "unreachable", message: "This browser has no WebSocket" };
/** Bytes; servers and proxies that take more in one POST are rare, and it begins anew at each interruption. */
const MOST_IN_A_POST = 1024 ** 3;

/**
 * From now on, as the field has come into the page.
 * @param {import( "./field.js").UploadField} field
 * @param {AbortSignal} signal the field has left it
 */
export function watchReach(field, signal) {
  const { zone, selection, input, notices, texts } = field;
  const { uploader } = selection;
  /** No WebSocket gets through: the input is a plain one. */
  let isPlain = false;

  /**
   * Tell the developer; the uploader writes it to the console, too. The user is told what it means by other words.
   * @param {{code: string, message: string}} warning
   */
  const warn = ({ code, message }) => field.tellPage("warning", { code, message });

  const onLost = () => {
    if (field.form) fallBack();
    else notices.show(texts.errorUnreachable);
  };

  /**
   * No upload gets through from here: the input is a plain one again, and holds the files that were chosen. Those that no POST can
   * carry go on waiting.
   */
  const fallBack = () => {
    if (isPlain) return;
    isPlain = zone.plain = true;
    const files = new DataTransfer();
    /** @param {import( "./item.js").Item} item */
    const isTooLarge = ({ size, busy }) => busy && size > MOST_IN_A_POST;
    for (const item of selection.items) {
      if (item.file && item.state !== "completed" && !isTooLarge(item)) files.items.add(item.file);
    }
    selection.clear((item) => item.state !== "completed" && !item.isOffer && !isTooLarge(item));
    if (selection.items.some(isTooLarge)) notices.show(texts.errorUnreachable);
    if (files.files.length) {
      input.files = files.files;
      notices.show(texts.withForm, "note");
    }
    field.change(true);
  };

  /** Uploads get through after all: what the plain input holds is uploaded. */
  const comeBack = () => {
    notices.show("");
    if (!isPlain) return;
    isPlain = zone.plain = false;
    zone.takeChosen();
    field.change(true);
  };

  uploader.addEventListener("warning", (event) => warn(/** @type {CustomEvent} */ (event).detail), { signal });
  uploader.addEventListener("unreachable", () => (uploader.unreachable ? onLost : comeBack)(), { signal });
  const hasWebSocket = "WebSocket" in window;
  if (!hasWebSocket) {
    console.warn(`django-resumable-upload: ${NO_WEBSOCKET.message}.`);
    warn(NO_WEBSOCKET);
  }
  if (!hasWebSocket || uploader.unreachable) onLost();
  else {
    zone.takeChosen();
    void selection.offers.show();
  }
}
