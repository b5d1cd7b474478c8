// Which of light and dark the page has; a classic script, so that it is known before anything is painted.
(() => {
  const KEY = "llm_decoder.theme";
  const root = document.documentElement;

  function read() {
    try {
      const kept = localStorage.getItem(KEY);
      return kept === "light" || kept === "dark" ? kept : "system";
    } catch {
      return "system";
    }
  }

  function show(theme) {
    if (theme === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
  }

  window.pageTheme = {
    get: read,
    set(theme) {
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // A browser that keeps nothing: the choice lasts as long as the page.
      }
      show(theme);
    },
  };
  show(read());
})();
