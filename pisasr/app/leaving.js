// The first script of the page (routes.py): gradio's listener would end a batch of who stays, too.
addEventListener("beforeunload", (event) => {
  if (window.pisasr?.isBatch) { event.preventDefault(); event.stopImmediatePropagation(); }
});
