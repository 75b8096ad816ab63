/* The library of plots is most of what a page with plots has to load. Where the reader begins with a page that has none,
   it comes while the browser has nothing else to do, so that the next page moves little and is drawn at once. */
(() => {
  const AFTER_MS = 1500, AT_MOST_MS = 10_000;
  const ahead = () => {
    if (window.Plotly || !window._dashPlotlyJSURL || document.querySelector(`script[src="${window._dashPlotlyJSURL}"]`)) return;
    const script = document.createElement("script");
    Object.assign(script, { src: window._dashPlotlyJSURL, async: true });
    document.head.append(script);
  };
  const idle = window.requestIdleCallback || ((task) => setTimeout(task, 1));
  window.addEventListener("load", () => setTimeout(() => idle(ahead, { timeout: AT_MOST_MS }), AFTER_MS));
})();
