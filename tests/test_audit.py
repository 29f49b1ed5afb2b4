"""Every rule of the audit fires on a notebook that breaks it, alone, and stays silent on one that does not."""

from __future__ import annotations

import pytest
from build_notebook import HEADER, PARAMETERS, PICTURE, code, lesson, notebook, parameters, printed, prose, shown
from nbformat import from_dict
from nbformat.v4 import new_output

from medvlp_kit import audit

ERROR = new_output("error", ename="ValueError", evalue="hidden", traceback=["ValueError: hidden"])


def with_widgets(**state) -> object:
    document = lesson()
    document.metadata["widgets"] = from_dict(
        {audit.WIDGET_STATE: {"state": {"1": {"model_name": "OutputModel", "state": state}}, "version_major": 2}}
    )
    return document


def source(text: str):
    return lambda: notebook(parameters(), text)


FAULTY = {
    "error output": [lambda: notebook(code("1/0", ERROR))],
    "error in widget state": [lambda: with_widgets(outputs=[dict(ERROR)])],
    "alt text": [
        lambda: notebook(code("plt.plot([1, 2])", shown(image_png="AAAA", text_plain="<Figure>"))),
        lambda: notebook(code("display(x)", new_output("display_data", data={"image/svg+xml": "<svg/>"}))),
        lambda: notebook(code("show()", shown(text_html='<img src="data:,x">'))),
        lambda: notebook(code("show()", shown(text_html='<IMG src="data:,x" alt="a figure">'))),
        lambda: notebook(
            code("show()", shown(text_html='<img src="data:,x" alt="The loss of the run" title="the loss of the run">'))
        ),
        lambda: notebook(code("show()", shown(text_html=PICTURE.replace("Line", "A line that rises from one to two")))),
        lambda: notebook(prose("![](picture.png)")),
        lambda: notebook(prose("![figure 1](picture.png)")),
        lambda: notebook(prose('Look: <img src="picture.png">')),
        lambda: with_widgets(value='<img src="data:,x">'),
    ],
    "absolute path": [
        source("folder = '/home/someone/data'"),
        source("folder = '/Users/someone/data'"),
        source(r"folder = 'C:\\Users\\someone'"),
        source("open('/tmp/x')"),
        lambda: notebook(code("print(path)", printed("saved to /root/runs/a.csv\n"))),
        lambda: notebook(code("print(path)", printed("saved to /tmp\n"))),
        lambda: notebook(code("path", shown(text_plain="PosixPath('/home/someone')"))),
        lambda: notebook(code("path", shown(text_html="<td>/mnt/data/x</td>"))),
        lambda: notebook(prose("Put the files into `/data/mimic`.")),
        lambda: notebook(code("import sys; print(sys.prefix)", printed(f"{audit.sys.prefix}\n"))),
        lambda: notebook(code("print(path)", printed("file:///x/runs/a.csv\n"))),
    ],
    "output size": [lambda: notebook(code("print('a' * 10**6)", printed("a" * 1_000_100)))],
    "network use": [
        source("import requests"),
        source("from urllib.request import urlopen"),
        source("import urllib.request as u"),
        source("!pip install torch"),
        source("%pip install torch"),
        source("%%bash\nwget https://example.org/x"),
        source("import subprocess\nsubprocess.run(['curl', 'https://example.org'])"),
        source("from transformers import AutoModel\nmodel = AutoModel.from_pretrained('bert-base-uncased')"),
        source("import timm\nmodel = timm.create_model('resnet18', pretrained=True)"),
        source("import torch\nmodel = torch.hub.list('pytorch/vision')"),
        source("path = hf_hub_download('a/b', 'c')"),
    ],
    "hard-coded cuda": [
        source("model = model.to('cuda')"),
        source("device = 'cuda:0'"),
        source("model = model.cuda()"),
    ],
    "loader workers": [
        source("loader = DataLoader(data, num_workers=2)"),
        source("num_workers = 4"),
        source("loader = DataLoader(data, num_workers=count)"),
    ],
    "half precision unasked": [
        source("with torch.autocast('cpu', torch.bfloat16):\n    pass"),
        source("autocast(device, dtype=torch.bfloat16)"),
    ],
    "banned call": [
        source("from ipywidgets import interact\ninteract(f, x=1)"),
        source("@interact\ndef f(x=1):\n    pass"),
        source("@widgets.interact(x=1)\ndef f(x):\n    pass"),
        source("widgets.interactive_output(f, {})"),
        source("out = widgets.Output()"),
        source("from ipywidgets import Output"),
        source("from captum.insights import AttributionVisualizer"),
        source("state = torch.load('model.pt')"),
        source("state = pickle.load(stream)"),
        source("build(trust_remote_code=True)"),
        source("%matplotlib widget"),
        lambda: notebook(code("show()", shown(text_html='<script src="https://cdn.jsdelivr.net/x.js"></script>'))),
        lambda: notebook(prose('<link href="https://unpkg.com/a.css">')),
    ],
}  # fmt: skip
CASES = [pytest.param(rule, build, id=f"{rule}-{i}") for rule in FAULTY for i, build in enumerate(FAULTY[rule])]


def test_a_clean_lesson_has_no_fault():
    assert audit.audit(lesson(), budget="tiny", seconds=29) == []


@pytest.mark.parametrize(("rule", "build"), CASES)
def test_each_fault_breaks_its_rule_and_no_other(rule, build):
    assert {fault.rule for fault in audit.audit(build())} == {rule}


@pytest.mark.parametrize(
    "text",
    [
        "device = 'cuda' if torch.cuda.is_available() else 'cpu'",
        "if device.type == 'cuda':\n    torch.cuda.synchronize()",
        "loader = DataLoader(data, num_workers=0)",
        "model = AutoModel.from_pretrained('./runs/model')\nother = AutoModel.from_pretrained(folder)",
        "model = timm.create_model('resnet10t', pretrained=False)",
        "import urllib.parse",
        "ratio = a/work  # a path no reader has\nhome = base / 'home'",
        "folder = '../shared/data'\nother = 'runs/tmp/x'\nurl = 'https://example.org/home/page'",
        "def interaction():\n    return slider.observe(update)",
        "%matplotlib inline",
        "with torch.autocast(device, torch.bfloat16, enabled=has_bf16()):\n    pass",
        "with torch.autocast(**precision), torch.autocast('cpu', enabled=False):\n    pass",
        "import subprocess\nsubprocess.run([sys.executable, '-m', 'medvlp_kit.pretrain'])",
        "text = 'AP/PA view: heart/lungs'",
    ],
)
def test_ordinary_code_is_no_fault(text):
    assert audit.audit(notebook(parameters(), text)) == []


def test_pictures_inside_data_addresses_are_not_read_as_text():
    picture = PICTURE.replace("AAAA", "AA/tmp/AA//cdnjs")
    assert audit.audit(notebook(code("show()", shown(text_html=picture)))) == []


def test_size_counts_what_would_be_committed():
    document = notebook(code("display(slider)", shown(text_plain="a" * 500_000)))
    assert audit.audit(document) == []
    document.cells[0].outputs.append(shown(text_plain="b" * 600_000))
    assert [fault.rule for fault in audit.audit(document)] == ["output size"]


def test_time_is_held_against_the_header():
    document = lesson()
    assert [fault.rule for fault in audit.audit(document, budget="tiny", seconds=31)] == ["time over the stated budget"]
    assert audit.audit(document, budget="tiny", seconds=31, slack=2.0) == []
    assert audit.audit(document, budget="laptop", seconds=239) == []
    assert audit.audit(document, budget="gpu", seconds=10**6) == []  # not measured, so nothing to hold it against
    shorter = lesson(header=HEADER.replace("| laptop | 4 |", "| laptop | about 3 min |"))
    assert len(audit.audit(shorter, budget="laptop", seconds=200)) == 1


def test_network_seen_while_running_is_a_fault_once_a_host():
    faults = audit.audit(lesson(), network=["example.org", "example.org", "hub.example"])
    assert [fault.rule for fault in faults] == ["network use"] * 2
    assert "example.org" in faults[0].message


def test_faults_name_their_cell():
    [fault] = audit.audit(notebook(prose("Text"), code(PARAMETERS), "model.cuda()"))
    assert str(fault).startswith("cell 3: hard-coded cuda: ")
