"""Recall and false alarms of detect-secrets and presidio-analyzer on the corpus of this crate.

    python3 -m venv /tmp/compare && /tmp/compare/bin/pip install -r crates/mask/compare/requirements.txt
    /tmp/compare/bin/python crates/mask/compare/compare.py

detect-secrets runs with all of its plugins and without its filters for whole files; presidio-analyzer with its recognizers that need no language
model, for everything that it counts as personal or financial, at its default threshold.
"""
import json
import pathlib
import tempfile

import tldextract.tldextract

# The list of public suffixes that comes with the package: nothing is fetched.
tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

from detect_secrets import SecretsCollection
from detect_secrets.settings import default_settings
from presidio_analyzer import RecognizerRegistry
from presidio_analyzer.predefined_recognizers import CreditCardRecognizer, EmailRecognizer, IbanRecognizer

CASES = [json.loads(line) for line in (pathlib.Path(__file__).parent.parent / "corpus" / "cases.jsonl").read_text().splitlines()]
KINDS = sorted({case["kind"] for case in CASES} - {"none"})


def by_detect_secrets(text):
    """What it reports of a text, as substrings; it reports a private key by its first line."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        secrets = SecretsCollection()
        with default_settings():
            secrets.scan_file(file.name)
        return [found.secret_value for _, found in secrets if found.secret_value]


RECOGNIZERS = [(EmailRecognizer(), "EMAIL_ADDRESS"), (IbanRecognizer(), "IBAN_CODE"), (CreditCardRecognizer(), "CREDIT_CARD")]


def by_presidio(text):
    found = []
    for recognizer, entity in RECOGNIZERS:
        found += [text[one.start:one.end] for one in recognizer.analyze(text, [entity]) if one.score >= 0.5]
    return found


def tell(name, find):
    hits = {kind: [0, 0] for kind in KINDS}
    alarms, none = [], 0
    for case in CASES:
        found = find(case["text"])
        if case["kind"] == "none":
            none += 1
            if found:
                alarms.append(case["text"])
            continue
        hits[case["kind"]][1] += 1
        secret = case["secret"]
        hits[case["kind"]][0] += any(secret in one or (one in secret and len(one) >= 8) for one in found)
    for kind in KINDS:
        print(f"{name}: {kind}: {hits[kind][0]}/{hits[kind][1]}")
    print(f"{name}: false alarms: {len(alarms)}/{none}")


tell("detect-secrets", by_detect_secrets)
tell("presidio-analyzer", by_presidio)
