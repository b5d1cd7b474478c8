// The form that asks for a key, when the server wants one.
import { byId } from "./dom.js";
import { logIn } from "./server.js";

export class Login {
  /** onSession(session): the door is open. */
  constructor(onSession) {
    this.dialog = byId("login");
    this.field = byId("login-key");
    this.trouble = byId("login-error");
    this.onSession = onSession;
    this.dialog.addEventListener("cancel", (event) => event.preventDefault());
    byId("login-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
  }

  /** Resolves when a key was right. */
  ask() {
    this.waiting ??= new Promise((resolve) => {
      this.resolve = resolve;
      this.trouble.hidden = true;
      this.field.value = "";
      this.dialog.showModal();
      this.field.focus();
    });
    return this.waiting;
  }

  async #submit() {
    const key = this.field.value.trim();
    if (!key) return;
    try {
      const session = await logIn(key);
      this.dialog.close();
      this.waiting = null;
      this.field.value = "";
      this.onSession(session);
      this.resolve(true);
    } catch (error) {
      this.trouble.textContent = error.status === 401 ? "This key is not known here." : error.message;
      this.trouble.hidden = false;
      this.field.select();
    }
  }
}
