// Which part of an answer has been rendered so far, whoever shows it.

export class Rendering {
  constructor() {
    this.blocks = []; // of each: {html, until}, until counted in UTF-16 units of the content
    this.points = 0; // the same in code points, as the server counts
    this.version = 0; // changes when blocks that were shown are no longer right
    this.isWhole = false;
  }

  get until() {
    return this.blocks.at(-1)?.until ?? 0;
  }

  /** A block as the stream brings it; one that came already, before a connection dropped, changes nothing. */
  add(index, html, untilPoints, content) {
    if (index !== this.blocks.length) return;
    let until = this.until;
    for (; this.points < untilPoints && until < content.length; this.points++) {
      until += content.codePointAt(until) > 0xffff ? 2 : 1;
    }
    this.blocks.push({ html, until });
  }

  /** All blocks of a finished content. */
  replace(htmls, content) {
    this.blocks = htmls.map((html) => ({ html, until: content.length }));
    this.version++;
    this.isWhole = true;
  }

  clear() {
    this.blocks = [];
    this.points = 0;
    this.version++;
    this.isWhole = false;
  }
}
