/**
 * `<async-upload>` makes a file input upload at once, with progress, and puts signed receipts into its form in place of files.
 *
 * It is an ordinary element around an ordinary file input, in the page's own tree, so that labels, forms, `required`, styles and
 * scripts of the page reach the input as always. Here is only how it comes into a page and leaves it; widget/field.js has the rest.
 */
import { uncover } from "./widget/dropzone.js";
import { UploadField } from "./widget/field.js";
import { satisfy } from "./widget/input.js";
import { postedIn } from "./widget/receipts.js";

/** On a server, which imports the modules of a page in order to render it, there are no elements. */
const Base = /** @type {typeof HTMLElement} */ (globalThis.HTMLElement ?? Object);

let elements = 0;

/**
 * All events bubble, and their `detail.upload` is an `Upload`. Attributes are read when the element comes into the page, but for
 * `accept` and `max-size`, which are asked at each file. `name`, `required`, `disabled`, `multiple`, `accept` and `form` of the
 * input are followed when they change.
 *
 * @attribute url the WebSocket: a path, or a `ws:` or `wss:` URL; default `/ws/uploads/`
 * @attribute field the signed token of the field, from the server
 * @attribute place an opaque tag of what the form is for, from the server: what is uploaded here goes on only in the same place
 * @attribute owner an opaque tag of the owner, from the server; without it nothing is remembered for a later page
 * @attribute taker who takes the finished file where there is no token: `form`, `api`, or `receiver`, which is the default
 * @attribute max-size bytes; larger files are refused before they are sent
 * @attribute accept as the input's, where that has none
 * @attribute directory choose folders
 * @attribute page-drop files that are dropped beside the zones of the page are for this one
 * @attribute texts JSON with the texts that are not as in `english.js`
 * @attribute min-size bytes; smaller files are refused
 * @attribute max-files how many there may be, where there may be several
 * @attribute max-total-size bytes that all of them may have together
 * @fires async-upload-add `{file, path}`: before a file is taken; it is left out after `preventDefault()`
 * @fires async-upload-progress `{upload, progress}`: a few times a second, for each upload that has moved
 * @fires async-upload-state `{upload, state, previous}`: an upload is in another state now
 * @fires async-upload-completed `{upload, result}`: a file is uploaded, and its receipt in the form
 * @fires async-upload-error `{upload, error}`: an upload has failed
 * @fires async-upload-warning `{code, message}`: for the developer, as of `Uploader`; the console has it, too. After `unreachable`
 *   the element is a plain file input, if it stands in a form
 */
export class AsyncUploadElement extends Base {
  /** @type {UploadField | null} null until there is an input to enhance */
  #field = null;
  #observer = new MutationObserver(() => this.#enhance());

  connectedCallback() {
    if (this.#field) {
      this.#field.comeBack();
      this.#observer.observe(this, { childList: true, subtree: true });
    }
    this.#enhance();
  }

  /** The files that are there, as far as this page has them. @returns {readonly File[]} */
  get files() {
    return this.#field?.files ?? [];
  }

  /** Their uploads. @returns {readonly import( "./client.js").Upload[]} */
  get uploads() {
    return this.#field?.uploads ?? [];
  }

  /** What is posted for them: receipts, with commas between. @returns {string} */
  get value() {
    return this.#field?.value ?? "";
  }

  /** Whether something is still to come by itself. @returns {boolean} */
  get busy() {
    return this.#field?.busy ?? false;
  }

  /**
   * Take files as if the user had chosen them.
   * @param {Iterable<File>} files
   * @returns {Promise<void>} when they are in the list, or refused there
   */
  async add(files) {
    await this.#field?.add(files);
  }

  /** Take all files away; those under way are cancelled. @returns {void} */
  clear() {
    this.#field?.clear();
  }

  #enhance() {
    // The library that made the input (React, Vue) has taken it away, and perhaps put another one there.
    if (this.#field && !this.contains(this.#field.input)) {
      this.#field.depart();
      this.#end();
    }
    if (this.#field || !this.isConnected) return;
    if (this.hasAttribute("data-enhanced")) cleanClone(this);
    const input = inputOf(this);
    // A row that is only there to be copied never uploads. Its copy gets its own name, perhaps when it is in the page already.
    if (!input || input.name.includes("__prefix__")) {
      const options = { childList: true, subtree: true, attributeFilter: ["name"] };
      return this.#observer.observe(this, options);
    }
    this.#observer.disconnect();
    this.id ||= `async-upload-${++elements}`;
    this.setAttribute("data-enhanced", "");
    this.#field = new UploadField(this, input);
    this.#observer.observe(this, { childList: true, subtree: true });
  }

  disconnectedCallback() {
    this.#observer.disconnect();
    this.#field?.depart();
    // One that was only moved within the page is back at once.
    setTimeout(() => {
      if (!this.isConnected && this.#field) this.#end();
    });
  }

  #end() {
    this.#field?.leave();
    this.#field = null;
    strip(this);
  }
}

/** @param {HTMLElement} element @returns {HTMLInputElement | null} */
function inputOf(element) {
  return element.querySelector("input[type=file]");
}

/** Take away what was put around the input. @param {HTMLElement} element */
function strip(element) {
  const input = inputOf(element);
  for (const part of element.querySelectorAll("[data-async-upload]")) part.remove();
  element.removeAttribute("data-enhanced");
  uncover(element);
  if (!input) return;
  const described = input.getAttribute("aria-describedby")?.split(" ") ?? [];
  const others = described.filter((id) => !id.startsWith(`${element.id}-async-`)).join(" ");
  if (others) input.setAttribute("aria-describedby", others);
  else input.removeAttribute("aria-describedby");
  input.removeAttribute("aria-invalid");
  satisfy(input, false);
}

/**
 * A clone of an enhanced element has copies of its parts, which do nothing, and of its receipts, which the original posts.
 * @param {HTMLElement} element
 */
function cleanClone(element) {
  for (const hidden of postedIn(element)) hidden.remove();
  const input = inputOf(element);
  if (input) input.value = "";
  strip(element);
  element.removeAttribute("id");
}

// The first one stays where a page loads this module a second time: a bundle beside the app's own, a hot reload.
if (globalThis.customElements && !customElements.get("async-upload")) customElements.define("async-upload", AsyncUploadElement);
