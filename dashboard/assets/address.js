/* The address follows the settings of a page, so that a reload or a shared link shows the same; the history is left alone. */
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  Object.assign((dash.loopscope = dash.loopscope || {}), {
    address(query) {
      if (typeof query === "string" && query !== window.location.search) {
        window.history.replaceState(window.history.state, "", window.location.pathname + query);
      }
      return dash.no_update;
    },
  });
})();
