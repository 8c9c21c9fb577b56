/**
 * Small pictures of images that were chosen. They are drawn into a canvas, not shown by an object URL: a page whose policy says
 * `img-src 'self'` shows them too, nothing has to be revoked, and nothing moves in them. Only raster images: an SVG is a program.
 */
import { startScaler } from "../file/workers.js";

const TYPES = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/avif", "image/bmp"]);
const LARGEST = 64 * 1024 * 1024; // bytes; decoding costs many times that

/** One for the page: pictures are decoded one after the other, so that a hundred photographs do not fill the memory. */
export class Previews {
  /** @type {{file: Blob, canvas: HTMLCanvasElement, done: () => void}[]} */
  #queue = [];
  /** @type {Worker | null | undefined} null where there can be none */
  #worker;
  #busy = false;

  /** Whether there can be one of it. @param {Blob} file */
  suits({ type, size }) {
    return TYPES.has(type) && size <= LARGEST;
  }

  /**
   * @param {Blob} file
   * @param {HTMLCanvasElement} canvas one that has left the page by its turn is passed over
   * @param {() => void} done called when the picture is there; not called where there is none
   */
  draw(file, canvas, done) {
    this.#queue.push({ file, canvas, done });
    if (!this.#busy) this.#next();
  }

  #next() {
    let turn = this.#queue.shift();
    while (turn && !turn.canvas.isConnected) turn = this.#queue.shift();
    this.#busy = !!turn;
    const worker = turn && this.#start();
    if (!turn || !worker) return;
    const { file, canvas, done } = turn;
    worker.onmessage = ({ data: { picture } }) => {
      if (picture) {
        canvas.width = picture.width;
        canvas.height = picture.height;
        canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(picture);
        done();
      }
      this.#next();
    };
    worker.postMessage({ file });
  }

  #start() {
    if (this.#worker === undefined) {
      try {
        this.#worker = startScaler();
        this.#worker.onerror = () => {
          this.#worker = null;
          this.#queue.length = 0;
        };
      } catch {
        this.#worker = null; // static files of another origin: no pictures
      }
    }
    return this.#worker;
  }
}
