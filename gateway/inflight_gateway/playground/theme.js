// Light, dark, or as the system has it. Loaded before the page is drawn, so that it never flashes in the other one.
"use strict";

(() => {
  const AFTER = { auto: "light", light: "dark", dark: "auto" };
  const PLACE = "inflight.theme";
  let theme = "auto";
  try {
    const kept = localStorage.getItem(PLACE);
    if (kept in AFTER) theme = kept;
  } catch {
    // A browser that keeps nothing: the system's theme will do.
  }
  const wear = () => {
    document.documentElement.dataset.theme = theme;
  };
  wear();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.lastElementChild.textContent = theme;
    };
    name();
    button.addEventListener("click", () => {
      theme = AFTER[theme];
      wear();
      name();
      try {
        localStorage.setItem(PLACE, theme);
      } catch {
        // Kept for this page alone.
      }
    });
  });
})();
