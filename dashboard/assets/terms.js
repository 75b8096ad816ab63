/* The explanation of a word: shown on pointing at it, on a tap, and when the keyboard reaches it; Escape puts it away. */
(() => {
  const tip = document.createElement("div");
  tip.id = "ls-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let of = null;
  const hide = () => { tip.hidden = true; of = null; };
  const show = (word) => {
    if (!tip.isConnected) document.body.append(tip);
    of = word;
    tip.textContent = word.dataset.tip;
    tip.hidden = false;
    const place = word.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(place.left, room - tip.offsetWidth - 8))}px`;
    const below = place.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight < window.innerHeight ? below : Math.max(4, place.top - tip.offsetHeight - 6)}px`;
  };
  /* In a table of runs the cell has the focus, not the word in it. */
  const word_at = (target) => {
    if (!target || !target.closest) return null;
    return target.closest("[data-tip]") || (target.matches(".ag-cell") ? target.querySelector("[data-tip]") : null);
  };
  for (const event of ["pointerover", "focusin", "click"]) {
    document.addEventListener(event, ({ target }) => {
      const word = word_at(target);
      if (word) show(word);
      else if (event !== "focusin" || target !== of) hide();
    });
  }
  document.addEventListener("focusout", () => hide());
  document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  document.addEventListener("scroll", () => hide(), true);
})();
