/**
 * What a field shows and says of its uploads beyond their rows: the line that sums up several files, what is said aloud on the way,
 * and small pictures. The bundle loads it with the first file: until then, and where that fails, every file has its row all the same.
 */
import { Milestones } from "./milestones.js";
import { Previews } from "./previews.js";
import { sum, Summary } from "./summary.js";
import { Undo } from "./undo.js";

/** Shared by all fields of the page. */
const previews = new Previews();

export class Extras {
  previews = previews;
  #summary;
  #milestones;

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    this.#summary = new Summary(field);
    this.#milestones = new Milestones(field.notices, field.texts, field.formats);
    this.undo = new Undo(field);
    this.undo.element.dataset.asyncUpload = "";
    field.list.element.prepend(this.#summary.element);
    field.list.element.after(this.undo.element);
  }

  /** Called at most a few times a second. @param {readonly import( "./item.js").Item[]} items */
  update(items) {
    const total = sum(items);
    this.#summary.update(total);
    this.#milestones.pass(items, total);
  }
}
