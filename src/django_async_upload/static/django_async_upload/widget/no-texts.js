/** In place of english.js in the bundle that pages of Django load: the page itself brings the texts, in its language. */
export const ENGLISH = {};
