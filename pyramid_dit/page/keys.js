// What the keyboard does beyond Gradio, and pictures from the clipboard. It runs once, when the
// page is loaded, and listens to the whole document before Gradio's components do.
() => {
  const LIST = "input[role=combobox]";
  let pointing = false; // whether a pointer was used last, and not a key

  const matches = (target, selector) => target instanceof Element && target.matches(selector);

  // Gradio opens a list whenever it gets the focus. Here a list that a key led to learns of its
  // focus only when it is used.
  let unaware = null;
  const tell = (target) => {
    if (target !== unaware) return;
    unaware = null;
    target.dispatchEvent(new FocusEvent("focus"));
  };
  const listen = (type, listener) => document.addEventListener(type, listener, true);
  listen("pointerdown", ({ target }) => {
    pointing = true;
    if (matches(target, `${LIST}[aria-expanded=false]:focus`)) target.blur(); // to focus it again
  });
  listen("focus", (event) => {
    if (!event.isTrusted || !matches(event.target, LIST)) return;
    unaware = pointing ? null : event.target;
    if (unaware) event.stopPropagation();
  });
  listen("input", ({ target }) => tell(target));
  listen("keydown", (event) => {
    const { key, target } = event;
    pointing = false;
    if (key === "Enter" && (event.ctrlKey || event.metaKey)) make(event);
    else if (matches(target, "[role=tab]")) moveTab(event);
    else if (["Tab", "Shift", "Control", "Alt", "Meta"].includes(key) && matches(target, LIST)) {
      event.stopPropagation(); // which would open it again
    } else if (key !== "Escape") tell(target);
  });

  function make(event) {
    const buttons = [...document.querySelectorAll("[id^=pf-make-]")];
    const button = buttons.find((one) => one.checkVisibility());
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();
    if (matches(event.target, LIST)) event.target.blur(); // so that what was typed counts
    requestAnimationFrame(() => button.click());
  }

  function moveTab(event) {
    const tabs = [...event.target.closest("[role=tablist]").querySelectorAll("[role=tab]")];
    const at = tabs.indexOf(event.target);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = tabs.at(to % tabs.length);
    tab.focus();
    tab.click();
  }

  document.addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    const words = types.includes("text/plain") && matches(event.target, "input, textarea");
    if (!picture || words) return;
    event.preventDefault();
    choosePicture(picture);
  });

  async function choosePicture(picture) {
    document.querySelector("[role=tab][data-tab-id=image]").click();
    document.querySelector("#pf-image [aria-label=Clear]")?.click();
    let input = null;
    while (!(input = document.querySelector("#pf-image input[type=file]"))) {
      await new Promise(requestAnimationFrame);
    }
    const chosen = new DataTransfer();
    chosen.items.add(picture);
    input.files = chosen.files;
    input.dispatchEvent(new Event("change"));
  }

  // Screen readers get the label of a video, which Gradio keeps apart from it.
  listen("loadedmetadata", ({ target }) => {
    const label = target.closest(".block")?.querySelector("[data-testid=block-label]");
    if (label) target.ariaLabel = label.textContent.trim();
  });
}
