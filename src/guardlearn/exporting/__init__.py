"""An adapter in the form that other programs load, checked before it is called done.

    peft      a PEFT folder, which vLLM loads by a name of your choice; with its base inside, `transformers serve` by
              its path
    merged    one model folder of safetensors (`guardlearn.merging`)
    ollama    a Modelfile, and the adapter as a GGUF file that llama.cpp loads, too

Whatever the form: it is written beside the output, loaded again from the disk, compared with base + adapter and with
the bare base, and moved into place whole, or nothing is there.
"""

from guardlearn.exporting.export import export_adapter
from guardlearn.exporting.report import FORMS, ExportReport

__all__ = ["FORMS", "ExportReport", "export_adapter"]
