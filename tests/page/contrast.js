// Measures the contrast of what is to be seen, by WCAG 2: of words and placeholders against what
// lies behind them (4.5, large ones 3), and of the edges of fields against what is around (3).
// Gives [all that was measured, what is too faint].
() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
    return { color: [red, green, blue], alpha: alpha / 255 };
  };
  const over = ({ color, alpha }, ground) => color.map((v, i) => v * alpha + ground[i] * (1 - alpha));
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const fill = rgba(getComputedStyle(element).backgroundColor);
    return fill.alpha === 1 ? fill.color : over(fill, behind(element.parentElement));
  };
  const opacity = (element) =>
    element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
  const luminance = (color) => {
    const linear = color.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const measured = [];
  const measure = (what, element, color, ground, least) => {
    const front = rgba(color);
    front.alpha *= opacity(element);
    const [dark, light] = [over(front, ground), ground].map(luminance).sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    measured.push([what, Number(ratio.toFixed(2)), least]);
  };
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(":disabled, .sr-only, canvas, video")) continue;
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const typed = element.matches("textarea, [type=number], [type=text], [role=combobox]");
    const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    const words = typed ? element.value : texts.map((node) => node.data.trim()).join(" ").trim();
    if (words) measure(words, element, style.color, behind(element), large ? 3 : 4.5);
    if (typed && element.placeholder) {
      const color = getComputedStyle(element, "::placeholder").color;
      measure(`placeholder: ${element.placeholder}`, element, color, behind(element), 4.5);
    }
    if (typed || element.matches("[type=checkbox]")) {
      let edge = element;
      while (parseFloat(getComputedStyle(edge).borderTopWidth) === 0) edge = edge.parentElement;
      const color = getComputedStyle(edge).borderTopColor;
      const name = element.ariaLabel || element.labels[0]?.innerText;
      measure(`edge of ${name}`, edge, color, behind(edge.parentElement), 3);
    }
  }
  return [measured, measured.filter(([, ratio, least]) => ratio < least)];
}
