// The tokens of a text, each an element that can be pointed at or moved to, and the card that says what else could
// have come in its place.

const VISIBLE = new Map([[" ", "␣"], ["\n", "↵"], ["\t", "⇥"], ["\r", "␍"], ["\u00a0", "⍽"]]);

/** What a token is called: white space as signs, what is no whole character, or nothing to see, by its bytes' place. */
export function visible(name) {
  const shown = [...name].map((letter) => VISIBLE.get(letter) ?? letter).join("");
  return shown.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`) || "∅";
}

export function percent(share) {
  return share >= 0.9995 ? "100 %" : share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;
}

export class Tokens {
  /** Shows tokens in `list`, and what is known of one in `card`. */
  constructor(list, card) {
    this.list = list;
    this.card = card;
    this.clear();
    list.addEventListener("focusin", (event) => this.#choose(event.target));
    list.addEventListener("focusout", () => this.hide());
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("pointerover", (event) => event.target !== list && this.#show(event.target));
    for (const part of [list, card]) {
      part.addEventListener("pointerleave", () => this.#leaveSoon());
      part.addEventListener("pointerenter", () => clearTimeout(this.leaving));
    }
  }

  clear() {
    this.list.replaceChildren();
    this.known = new WeakMap();
    this.current = null;
    this.hide();
  }

  get count() {
    return this.list.childElementCount;
  }

  /** Append tokens as the server tells of them. */
  add(tokens) {
    const added = document.createDocumentFragment();
    for (const token of tokens) {
      const element = document.createElement("span");
      element.textContent = token.text;
      element.role = "option";
      element.ariaSelected = "false";
      element.ariaLabel = `${visible(token.name)}, ${percent(token.probability)}`;
      element.tabIndex = -1;
      element.className = token.probability >= 0.25 ? "likely" : token.probability >= 0.05 ? "rare" : "rarest";
      if (!token.text) element.classList.add("part");
      if (token.text.includes("\n")) element.classList.add("break");
      // Eight bits of surprise are the darkest shade.
      element.style.setProperty("--surprise", Math.min(1, -Math.log2(token.probability || 1e-6) / 8).toFixed(3));
      this.known.set(element, token);
      added.append(element);
    }
    this.list.append(added);
    if (!this.current && this.list.firstElementChild) {
      this.current = this.list.firstElementChild;
      this.current.tabIndex = 0;
    }
  }

  /** Take the card away. */
  hide() {
    this.card.hidden = true;
  }

  #choose(element) {
    this.current.tabIndex = -1;
    this.current.ariaSelected = "false";
    this.current.removeAttribute("aria-describedby");
    this.current = element;
    element.tabIndex = 0;
    element.ariaSelected = "true";
    this.#show(element);
    element.setAttribute("aria-describedby", this.card.id);
  }

  #leaveSoon() {
    clearTimeout(this.leaving);
    this.leaving = setTimeout(() => {
      if (document.activeElement?.parentElement === this.list) this.#show(document.activeElement);
      else this.hide();
    }, 150);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const element = event.target;
    const next = {
      ArrowRight: () => element.nextElementSibling,
      ArrowLeft: () => element.previousElementSibling,
      ArrowDown: () => this.#line(element, "nextElementSibling"),
      ArrowUp: () => this.#line(element, "previousElementSibling"),
      Home: () => this.list.firstElementChild,
      End: () => this.list.lastElementChild,
    }[event.key]?.();
    if (next === undefined) return;
    event.preventDefault();
    next?.focus();
  }

  /** The token on the line above or below that is nearest to the column of another one. */
  #line(element, direction) {
    const from = element.getClientRects()[0];
    let line, best = null, least = Infinity;
    for (let other = element[direction]; other; other = other[direction]) {
      const place = other.getClientRects()[0];
      if (!place || Math.abs(place.top - from.top) < from.height / 2) continue;
      line ??= place.top;
      if (Math.abs(place.top - line) >= from.height / 2) break;
      const distance = Math.abs(place.left - from.left);
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  }

  #show(element) {
    clearTimeout(this.leaving);
    const token = this.known.get(element);
    const rows = token.alternatives.map(([name, share], place) => row(name, share, place === token.place));
    if (token.place === null) rows.push(row(token.name, token.probability, true, true));
    const head = document.createElement("p");
    const number = [...this.list.children].indexOf(element) + 1;
    head.textContent = `Token ${number} of ${this.count}, id ${token.id}`;
    const list = document.createElement("ol");
    list.append(...rows);
    this.card.replaceChildren(head, list);
    this.card.hidden = false;
  }
}

function row(name, share, chosen, apart = false) {
  const item = document.createElement("li");
  const [label, bar, value] = ["span", "span", "span"].map((kind) => document.createElement(kind));
  label.className = "name";
  label.textContent = visible(name);
  bar.className = "bar";
  bar.style.setProperty("--share", share);
  value.className = "share";
  value.textContent = percent(share);
  item.append(label, bar, value);
  item.classList.toggle("chosen", chosen);
  item.classList.toggle("apart", apart);
  if (chosen) {
    const note = document.createElement("span");
    note.className = "unseen";
    note.textContent = "chosen";
    item.append(note);
  }
  return item;
}
