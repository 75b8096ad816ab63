/* The connection light: is the server there, and is the run that the page shows still being written? */
(() => {
  const EVERY_MS = 3000, SILENT_S = 120;
  let answered = Date.now(), gone = false, written = null; /* when the run was written last, by this machine's clock */
  const ago = (ms) => {
    const s = Math.max(0, Math.round(ms / 1000));
    return s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
  };
  const say = () => {
    const light = document.getElementById("light");
    if (!light) return;
    const silent = written !== null && Date.now() - written > SILENT_S * 1000;
    const kind = gone ? "gone" : silent ? "silent" : "well";
    const text = gone ? "server gone" : silent ? `run not written for ${ago(Date.now() - written)}` : `updated ${ago(Date.now() - answered)} ago`;
    if (light.className !== `ls-light ls-light-${kind}`) light.className = `ls-light ls-light-${kind}`;
    /* Only a change of kind is news to a screen reader; the seconds are not. */
    light.setAttribute("aria-live", "off");
    if (light.textContent !== text) light.textContent = text;
  };
  const ask = async () => {
    if (!document.hidden) {
      const asked = window.location.pathname, run = (asked.match(/^\/run\/([^/]+)$/) || [])[1];
      try {
        const answer = await fetch(run ? `/alive?run=${run}` : "/alive", { cache: "no-store", signal: AbortSignal.timeout(15000) });
        if (!answer.ok) throw new Error(answer.status);
        const { state, age } = await answer.json();
        written = state === "live" && asked === window.location.pathname ? Date.now() - 1000 * age : null;
        if (gone) window.dispatchEvent(new Event("loopscope-back"));
        gone = false;
        answered = Date.now();
      } catch {
        gone = true;
      }
      say();
    }
    setTimeout(ask, EVERY_MS);
  };
  window.addEventListener("DOMContentLoaded", () => {
    setTimeout(ask, 500);
    setInterval(say, 1000);
  });
})();
