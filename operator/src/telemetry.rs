//! The log: text or JSON, one span for each pass over a run.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// kube warns of every watch that an API server ends without a farewell, which they all do now and then; the watch is taken up again.
const QUIET: &str = "kube_client::client=error";

/// Starts logging to standard output. The level comes from `RUST_LOG`, `info` by default.
pub(crate) fn start(format: LogFormat) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|wanted| !wanted.is_empty()).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::new(format!("{QUIET},{wanted}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}
