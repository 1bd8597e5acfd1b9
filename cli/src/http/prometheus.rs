//! `GET /metrics`: the same in the text format of Prometheus.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::read::{Counts, counts};
use super::reply::Refusal;
use super::routes::App;
use crate::control::LiveStatus;
use crate::daemon::LiveMemory;

/// The format.
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    let live = app.live().await?;
    let counts = app.read(counts).await?;
    let text = render(&live, &counts);
    Ok(([(CONTENT_TYPE, TEXT)], text).into_response())
}

/// The gauges of `chandler serve`.
pub(super) fn render_serving(waiting: usize, answering: bool, memory_now: &LiveMemory) -> String {
    let mut page = Page::default();
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("chandler_info", "The version.", &[(&version, Some(1))]);
    page.one("chandler_serve_waiting", "Requests that wait for their turn.", Some(waiting));
    let answering = Some(u8::from(answering));
    page.one("chandler_serve_answering", "Whether one is being answered.", answering);
    memory(&mut page, memory_now);
    page.0
}

/// Gauges; one that is unknown is left out.
fn render(live: &LiveStatus, counts: &Counts) -> String {
    let mut page = Page::default();
    page.gauge(
        "chandler_info",
        "The version.",
        &[(&[("version", live.version.as_str())], Some(1))],
    );
    page.one("chandler_paused", "Whether it takes no steps.", Some(u8::from(live.paused)));
    let jobs: Vec<_> =
        counts.iter().map(|(state, count)| ([("state", state.as_str())], Some(*count))).collect();
    let jobs: Vec<Sample<u64>> =
        jobs.iter().map(|(labels, count)| (labels.as_slice(), *count)).collect();
    page.gauge("chandler_jobs", "Jobs by state.", &jobs);
    let current = live.current.as_ref();
    page.one("chandler_run", "The run that is going on.", current.map(|current| current.run_id));
    let progress = current.and_then(|current| current.progress.as_ref());
    page.one("chandler_step", "The last step.", progress.map(|p| p.step));
    page.one("chandler_total_steps", "Steps of the run.", progress.map(|p| p.total_steps));
    page.one("chandler_loss", "Loss of the last step.", progress.map(|p| p.loss));
    page.one("chandler_learning_rate", "Rate of the last step.", progress.map(|p| p.lr));
    page.one(
        "chandler_tokens_per_second",
        "Speed of the last step.",
        progress.and_then(|p| p.tokens_per_s),
    );
    page.one("chandler_seconds_left", "Until the run's last step.", progress.and_then(|p| p.eta_s));
    memory(&mut page, &live.memory);
    page.0
}

fn memory(page: &mut Page, memory: &LiveMemory) {
    let held: Vec<(String, u64)> =
        memory.ledger.categories.iter().map(|line| (word(line.category), line.bytes)).collect();
    let labels: Vec<_> =
        held.iter().map(|(word, bytes)| ([("category", word.as_str())], *bytes)).collect();
    let samples: Vec<Sample<u64>> =
        labels.iter().map(|(labels, bytes)| (labels.as_slice(), Some(*bytes))).collect();
    page.gauge("chandler_memory_bytes", "What is held, by what it is for.", &samples);
    page.one("chandler_heap_bytes", "The heap.", memory.heap);
    page.one("chandler_memory_limit_bytes", "memory.limit.", memory.limit);
    page.one("chandler_resident_bytes", "What of the process is in RAM.", memory.host.rss);
    page.one("chandler_host_available_bytes", "RAM to be had.", memory.host.available);
    let gpus: Vec<(String, Option<u64>, Option<u64>)> = memory
        .gpus
        .iter()
        .flatten()
        .map(|gpu| (gpu.index.to_string(), gpu.used, gpu.total))
        .collect();
    for (name, help, pick) in [
        ("chandler_gpu_used_bytes", "GPU memory in use, by anyone.", 0),
        ("chandler_gpu_total_bytes", "GPU memory there is.", 1),
    ] {
        let labels: Vec<_> = gpus
            .iter()
            .map(|(index, used, total)| ([("gpu", index.as_str())], [*used, *total][pick]))
            .collect();
        let samples: Vec<Sample<u64>> =
            labels.iter().map(|(labels, bytes)| (labels.as_slice(), *bytes)).collect();
        page.gauge(name, help, &samples);
    }
}

/// The word by which the API calls a category.
fn word(category: chandler_vram::Category) -> String {
    let json = serde_json::to_value(category).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

type Sample<'a, T> = (&'a [(&'a str, &'a str)], Option<T>);

#[derive(Default)]
struct Page(String);

impl Page {
    fn one(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        self.gauge(name, help, &[(&[], value)]);
    }

    fn gauge<T: Display>(&mut self, name: &str, help: &str, samples: &[Sample<'_, T>]) {
        if samples.iter().all(|(_, value)| value.is_none()) {
            return;
        }
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in samples {
            let Some(value) = value else { continue };
            let labels: Vec<String> = labels
                .iter()
                .map(|(label, text)| format!("{label}=\"{}\"", escaped(text)))
                .collect();
            let braces =
                if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "{name}{braces} {value}");
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_left_out() {
        let mut page = Page::default();
        page.one("a", "A.", Some(1.5));
        page.one("b", "B.", None::<u64>);
        page.gauge("c", "C.", &[(&[("x", "q\"\\")], Some(2)), (&[("x", "y")], None)]);
        assert_eq!(
            page.0,
            "# HELP a A.\n# TYPE a gauge\na 1.5\n\
             # HELP c C.\n# TYPE c gauge\nc{x=\"q\\\"\\\\\"} 2\n"
        );
    }
}
