// Say when the studio has stopped, which Gradio doesn't while nothing is asked, and begin anew when it is back.
(() => {
  const banner = document.createElement("div");
  banner.id = "stopped";
  banner.setAttribute("role", "alert");
  banner.hidden = true;
  banner.textContent = "The studio has stopped. This page goes on when it is started again.";
  document.documentElement.append(banner); // the body is Gradio's
  setInterval(async () => {
    const lost = !banner.hidden;
    try {
      const answer = await fetch("alive", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      if (lost) location.reload();
    } catch {
      banner.hidden = false;
    }
  }, 3000);
})();
