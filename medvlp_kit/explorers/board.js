// Shows HTML and tells the kernel what was picked in it, with the mouse or with Tab and Enter.
function render({ model, el }) {
  el.setAttribute("aria-live", "polite");
  const draw = () => {
    const held = el.contains(document.activeElement) ? document.activeElement.dataset.pick : undefined;
    el.innerHTML = model.get("value");
    if (held !== undefined) el.querySelector(`[data-pick="${CSS.escape(held)}"]`)?.focus();
  };
  const pick = (event) => {
    const target = event.target.closest("[data-pick]");
    if (!target || !el.contains(target)) return;
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would read Enter as a command of the notebook
    model.set("picked", target.dataset.pick);
    model.set("picks", model.get("picks") + 1); // the same thing may be picked twice
    model.save_changes();
  };
  el.addEventListener("click", pick);
  el.addEventListener("keydown", pick);
  model.on("change:value", draw);
  draw();
  // the living explorer is here, so its static copy folds away; the copy is put on the page after it
  const fold = () => el.closest(".jp-OutputArea")?.querySelectorAll("details[data-static-copy]").forEach((copy) => copy.removeAttribute("open"));
  for (const wait of [0, 300, 1500]) setTimeout(fold, wait);
  return () => model.off("change:value", draw);
}
export default { render };
