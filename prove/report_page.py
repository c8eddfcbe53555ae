"""The report of a demo, opened in Chromium in light, in dark and 390 pixels wide, folded and unfolded: it requests
itself and nothing else, no console message, no error, the body never scrolls sideways, every text has at least the
contrast of WCAG AA (4.5), axe-core finds nothing serious or critical, all three figures and three chains with their
differences and loss masks are there; on paper nothing is folded and no table is cut. docs/report.png shows its top."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "report.png"
PICTURE_SIZE = 400_000
VIEWS = {"light": (1200, 1400, "light"), "dark": (1200, 1400, "dark"), "phone": (390, 844, "light")}
CONTRAST = 4.5

MEASURE = """() => {
  const lightness = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => value / 255)
      .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const contrast = element => {
    const style = getComputedStyle(element);
    const ink = lightness(element.closest('svg') ? style.fill : style.color), paper = lightness(ground(element));
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  const told = [...document.body.querySelectorAll('*')].filter(element =>
    element.checkVisibility() && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const worst = told.map(element => [contrast(element), element]).sort((one, other) => one[0] - other[0])[0];
  return {
    width: document.documentElement.scrollWidth,
    texts: told.length,
    worst_contrast: Math.round(worst[0] * 100) / 100,
    worst_text: worst[1].textContent.trim().slice(0, 40),
    figures: document.querySelectorAll('figure svg[role=img][aria-label]').length,
    chains: document.querySelectorAll('.trace').length,
    differences: document.querySelectorAll('.trace .diff').length,
    rows: document.querySelectorAll('.trace .tokens').length,
    end_tokens: document.querySelectorAll('.trace .tokens mark.end:last-child').length,
  };
}"""
PAPER = {"width": 688, "height": 1017}  # A4 less 14 mm on each side
FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
ON_PAPER = """() => ({
  folded: [...document.querySelectorAll('details')].filter(each => !each.lastElementChild.checkVisibility(
    {contentVisibilityAuto: true, visibilityProperty: true})).length,
  cut: [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length,
})"""


def run(work):
    sync_playwright, chromium = browser()
    page = report(work)
    views = {}
    with sync_playwright() as playwright:
        engine = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        result = {"chromium": engine.version, "page_bytes": page.stat().st_size, "views": views}
        for name, (width, height, scheme) in VIEWS.items():
            views[name] = look(
                engine, page, width, height, scheme, PICTURE if name == "light" else work / f"{name}.png"
            )
        result["paper"] = printed(engine, page)
        engine.close()
    result["picture_bytes"] = PICTURE.stat().st_size
    small = result["picture_bytes"] < PICTURE_SIZE
    return result, all(map(holds, views.values())) and small and result["paper"] == {"folded": 0, "cut": 0}


def browser():
    """Return Playwright and the browser's path, or end with the one line that helps."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        sys.exit(
            "report_page needs a browser and its driver; run: apt-get install chromium; pip install -e '.[browser]'"
        )
    return sync_playwright, chromium


def report(work):
    """Return the page that this tree writes of a demo: of a finished one in GUARDLEARN_DEMO_DIR, else of its own."""
    demo = Path(os.environ.get("GUARDLEARN_DEMO_DIR") or work / "demo").resolve()
    if not (demo / "evidence.json").is_file():
        command = [sys.executable, "-m", "guardlearn", "demo", "--dir", demo.name, "--json"]
        subprocess.run(command, cwd=demo.parent, stdout=subprocess.DEVNULL, check=True)
        return demo / "report.html"
    from guardlearn import ArtifactDAG, extract_traces, report
    from guardlearn.demo.run import LIMITS
    from guardlearn.models import resolve_model

    with ArtifactDAG.load(demo / "runs.db", read_only=True) as dag:
        dropped = extract_traces(dag, "refinement").dropped
        story = report.story(dag, demo / "job", resolve_model("demo"), dropped=dropped)
    return report.write(work / "page", report.load(demo / "evidence.json"), story=story, limits=LIMITS)


def look(engine, page, width, height, scheme, picture):
    """Open the page as one reader would; return what happened, before and after unfolding everything."""
    view = engine.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    requests, said = [], []
    view.on("request", lambda request: requests.append(request.url))
    view.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: said.append(f"error: {error}"))
    view.goto(page.as_uri())
    view.screenshot(path=picture)
    folded = view.evaluate(MEASURE) | {"axe": findings(view)}
    view.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true; })")
    seen = {"folded": folded, "unfolded": view.evaluate(MEASURE) | {"axe": findings(view)}}
    view.close()
    foreign = [url for url in requests if url != page.as_uri()]
    return {"width": width, "scheme": scheme, "requests": len(requests), "foreign": foreign, "said": said, **seen}


def findings(view):
    """Return the rules of axe-core that are broken, with their impact, all of them."""
    from axe_playwright_python.sync_playwright import Axe

    return {each["id"]: each["impact"] for each in Axe().run(view).response["violations"]}


def printed(engine, page):
    """Return how many folds stay closed on paper and how many tables are wider than it."""
    view = engine.new_page(viewport=PAPER)
    view.goto(page.as_uri())
    view.emulate_media(media="print")
    view.evaluate(FRAME)
    found = view.evaluate(ON_PAPER)
    view.close()
    return found


def holds(view):
    alone = view["requests"] == 1 and not view["foreign"] and not view["said"]
    return alone and all(
        state["width"] <= view["width"]
        and state["worst_contrast"] >= CONTRAST
        and not {"serious", "critical"} & set(state["axe"].values())
        and state["figures"] == state["chains"] == 3
        and state["differences"] >= 3
        and state["rows"] == state["end_tokens"] >= 3
        for state in (view["folded"], view["unfolded"])
    )
