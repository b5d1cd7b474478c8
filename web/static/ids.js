// Names for what the page keeps.

/** 96 random bits; crypto.randomUUID is missing where the page comes over plain HTTP. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

let last = 0;

/** Milliseconds since 1970, and later than any time it gave before: siblings are put in order by it. */
export function now() {
  last = Math.max(Date.now(), last + 1);
  return last;
}
