"""Has Prometheus' own parser read a page of gauges on the standard input.

Prints each sample as NAME{LABEL="VALUE",...} NUMBER, in the page's order; a page that is not in the
format, or says of a gauge neither type nor meaning, ends with an error.
"""

import sys

from prometheus_client.parser import text_string_to_metric_families

for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.type == "gauge" and family.documentation, family
    for sample in family.samples:
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
        print(f"{sample.name}{{{labels}}} {sample.value}")
