// Says on an open page that the program behind it has ended, and loads the page anew when there is one again.
const EVERY_MS = 3000;
const STOPPED = "salalocal has stopped. Start it again in the terminal, and this page goes on.";

setInterval(async () => {
  let there = true;
  try {
    await fetch("gradio_api/app_id", { cache: "no-store" });
  } catch {
    there = false;
  }
  const shown = document.getElementById("sl-stopped");
  if (there && shown) {
    location.reload();
  } else if (!there && !shown) {
    const bar = document.createElement("p");
    bar.id = "sl-stopped";
    bar.setAttribute("role", "alert");
    bar.textContent = STOPPED;
    document.body.append(bar);
  }
}, EVERY_MS);
