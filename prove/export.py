"""The demo's model and an adapter trained on it, exported to all three forms. The PEFT folder, with its base inside,
and the GGUF adapter, loaded again, continue all 20 prompts as base + adapter does, logits within 1e-3; the merged model
keeps a merge's bounds; none is the bare base. `transformers serve`, asked by name, gives for merged model and PEFT
folder the greedy answers that base + adapter gives here, in float32."""

import shutil
import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from merge import given, trained

from guardlearn import SamplingConfig, export_adapter, open_generator
from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.tasks import specifications
from guardlearn.generators import OpenAISettings
from guardlearn.prompts import Renderer
from guardlearn.types import GenerationRequest, Side
from served import transformers_serve

ASKED = 6
SAMPLING = SamplingConfig(temperature=0.0, max_new_tokens=48)


def run(work):
    adapter = given() or trained(work)
    reports = {}
    for form, options in {
        "merged": {"dtype": "float32"},
        "peft": {"with_base": True},
        "ollama": {"base_name": "smollm2:135m"},
    }.items():
        shutil.rmtree(work / form, ignore_errors=True)
        reports[form] = export_adapter(adapter, form, work / form, **options)
    served = asked(work, adapter)
    exact = [report.agreement for report in reports.values()]
    holds = (
        all(found.adapter_difference <= 1e-3 for found in exact)
        and all(found.identical_continuations == found.prompts == 20 for found in exact)
        and all(found.base_difference > 1 for found in exact)
        and all(figures["as_base_and_adapter"] == figures["asked"] == ASKED for figures in served.values())
        and all(figures["as_bare_base"] < ASKED for figures in served.values())
    )
    told = {form: msgspec.to_builtins(report.agreement) for form, report in reports.items()}
    return {"exports": told, "notes": reports["peft"].notes, "served": served}, holds


def asked(work, adapter):
    """Ask a server for each export by its folder's name, and base + adapter here."""
    specs = list(specifications(Side.VALIDATION))[:ASKED]
    prompts = [Renderer().messages(spec.specification, house_style.constraints) for spec in specs]
    requests = [GenerationRequest(messages=tuple(each), key=str(n)) for n, each in enumerate(prompts)]
    here = open_generator("transformers", demo_model(), sampling=SAMPLING, dtype="float32")
    bare = [answer.text for answer in here.generate(requests)]
    here.use_adapter(adapter)
    own = [answer.text for answer in here.generate(requests)]
    del here
    found = {}
    with transformers_serve(work / "serve.log", work) as url:
        for name in ("merged", "peft"):
            settings = OpenAISettings(base_url=url, concurrency=1, tokenizer=str(demo_model()))
            answers = open_generator("openai", name, sampling=SAMPLING, settings=settings).generate(requests)
            texts = [answer.text for answer in answers]
            found[name] = {
                "asked": len(texts),
                "as_base_and_adapter": sum(text == due for text, due in zip(texts, own, strict=True)),
                "as_bare_base": sum(text == plain for text, plain in zip(texts, bare, strict=True)),
            }
    return found
