//! The log: text or JSON, one span for each pass over a run.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging to standard output. The level comes from `RUST_LOG`, `info` by default.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}
