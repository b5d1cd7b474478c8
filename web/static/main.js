// Puts the page together.
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { byId, copyText } from "./dom.js";
import { Login } from "./login.js";
import { MemoryStore } from "./memory_store.js";
import { Panes } from "./panes.js";
import { SearchView } from "./search_view.js";
import { logOut, readSession, ServerError, whenLocked } from "./server.js";
import { SettingsPanel } from "./settings_panel.js";
import { fillHelp, listen } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { StorageError, Store } from "./store.js";
import { Tabs } from "./tabs.js";
import { complain, tell } from "./toasts.js";
import { Transcript } from "./transcript.js";

const LOADING_MS = 1500;
const WAITING = { loading: "Loading the model …", closing: "The server is shutting down" };
const number = new Intl.NumberFormat("en");

window.addEventListener("unhandledrejection", (event) => {
  if (!(event.reason instanceof StorageError)) return;
  event.preventDefault();
  complain(event.reason);
});

const chat = new Chat(await openStore(), new Tabs());
const panes = new Panes();
const sidebar = new Sidebar(chat);
const settings = new SettingsPanel(chat);
const transcript = new Transcript(chat, (bringBack) => {
  if (bringBack) tell("Message deleted.", { label: "Undo", run: bringBack });
});
const composer = new Composer(chat, { onUp: editLast });
const search = new SearchView(chat, { onChat: () => showView("chat") });
const login = new Login((session) => {
  showSession(session);
  composer.focus();
});

async function openStore() {
  try {
    return await Store.open();
  } catch {
    complain(new Error("This browser keeps no data for this page: conversations end with it. Is its storage off?"));
    return new MemoryStore();
  }
}

// -- the server

whenLocked(async (error) => {
  if (error.status === 403) return readSession().then(() => true, () => false); // a token of an earlier session
  return login.ask();
});

function showSession(session) {
  byId("model").textContent = session.model ?? "";
  byId("model").title = session.max_model_len ? `Context of ${number.format(session.max_model_len)} tokens` : "";
  byId("welcome-model").textContent = session.model ?? "the model";
  byId("welcome-context").textContent = session.max_model_len
    ? `It reads up to ${number.format(session.max_model_len)} tokens at once.`
    : "";
  byId("sign-out").hidden = !session.csrf;
  settings.setDefaults(session.defaults);
  search.meet(session);
}

async function meet() {
  for (;;) {
    let state = "loading";
    try {
      const session = await readSession();
      if (session.needs_key) {
        await login.ask();
        continue;
      }
      showSession(session);
      if (session.model) return;
      state = session.state;
      if (state === "failed") {
        byId("model").textContent = "No model";
        return complain(new Error("The model could not be loaded; the server's log says why."));
      }
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 503) return complain(error);
    }
    byId("model").textContent = WAITING[state] ?? WAITING.loading;
    await new Promise((resolve) => setTimeout(resolve, LOADING_MS));
  }
}

byId("sign-out").addEventListener("click", async () => {
  await logOut().catch(complain);
  location.reload();
});

// -- where the reader is: the address names the conversation

function addressed() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null; // an address that somebody has cut
  }
}

async function openAddressed() {
  await chat.open(addressed());
  if (addressed() && !chat.conversation) history.replaceState(null, "", "#");
  panes.closeSheets();
}

window.addEventListener("hashchange", () => openAddressed().then(() => composer.focus()));

chat.addEventListener("open", () => {
  const { conversation } = chat;
  if (conversation && addressed() !== conversation.id) history.pushState(null, "", `#${conversation.id}`);
  showTitle();
});
chat.addEventListener("list", showTitle);
chat.addEventListener("open", () => isSearching() && showView("chat"));
chat.addEventListener("trouble", ({ detail }) => complain(detail.error));

function showTitle() {
  const title = chat.conversation?.title ?? "New conversation";
  byId("title").textContent = title;
  document.title = chat.conversation ? `${title} · llm_decoder` : "llm_decoder";
}

function startNew() {
  panes.closeSheets();
  if (addressed()) location.hash = "";
  else composer.focus();
}

byId("new").addEventListener("click", startNew);
byId("new-small").addEventListener("click", startNew);
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => composer.write(button.dataset.prompt));
}

// -- the chat, and the search beside it

function showView(name) {
  const isSearch = name === "search";
  byId("search-view").hidden = !isSearch;
  byId("scroller").hidden = byId("dock").hidden = isSearch;
  byId("show-chat").setAttribute("aria-pressed", String(!isSearch));
  byId("show-search").setAttribute("aria-pressed", String(isSearch));
  if (isSearch) search.focus();
  else composer.focus();
}

const isSearching = () => !byId("search-view").hidden;

byId("show-chat").addEventListener("click", () => showView("chat"));
byId("show-search").addEventListener("click", () => showView("search"));

// -- looks and help

const themeButtons = [...document.querySelectorAll("[data-theme-choice]")];

function showTheme() {
  for (const button of themeButtons) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === window.pageTheme.get()));
  }
}

for (const button of themeButtons) {
  button.addEventListener("click", () => {
    window.pageTheme.set(button.dataset.themeChoice);
    showTheme();
  });
}
showTheme();

function toggleHelp() {
  const help = byId("help");
  if (help.open) help.close();
  else help.showModal();
}

fillHelp();
byId("show-help").addEventListener("click", toggleHelp);
byId("close-help").addEventListener("click", toggleHelp);

// -- keys

const lastOf = (role) => chat.path.findLast((message) => message.role === role);

function editLast() {
  const message = lastOf("user");
  if (message) transcript.viewOf(message.id)?.edit();
}

function onAnswer(act) {
  const message = lastOf("assistant");
  if (message) act(message);
}

listen({
  escape: () => {
    if (isSearching() && search.isRunning) search.stop();
    else if (!isSearching() && chat.run) chat.stop();
    else if (!panes.closeSheets()) (isSearching() ? search : composer).focus();
  },
  new: startNew,
  search: () => {
    panes.show("sidebar");
    byId("search").focus();
    byId("search").select();
  },
  sidebar: () => panes.toggle("sidebar"),
  settings: () => panes.toggle("settings"),
  regenerate: () => chat.path.length && chat.regenerate(chat.path.at(-1).id),
  continue: () => onAnswer((message) => message.id === chat.path.at(-1).id && message.content && chat.goOn(message.id)),
  edit: editLast,
  copy: () =>
    onAnswer(async (message) => {
      tell((await copyText(message.content)) ? "Answer copied." : "The browser did not allow to copy.");
    }),
  previous: () => onAnswer((message) => chat.walk(message.id, -1)),
  next: () => onAnswer((message) => chat.walk(message.id, 1)),
  view: () => showView(isSearching() ? "chat" : "search"),
  help: toggleHelp,
});

// -- begin

sidebar.update();
await openAddressed();
composer.update();
composer.focus();
document.body.dataset.ready = "true";
await meet();
