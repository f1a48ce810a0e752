//! Errors of infrastructure: retried with back-off, logged once with their chain. A refusal is not an error.

use kube::core::Status;
use thiserror::Error;

/// One pass over a run could not come to its end.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("cannot read {what}")]
    Read { what: &'static str, source: Box<kube::Error> },
    #[error("cannot write {what}")]
    Write { what: &'static str, source: Box<kube::Error> },
    #[error("no answer within the request limit: {what}")]
    Late { what: &'static str },
    #[error("the stored object changed since it was read")]
    Conflict,
    #[error("too many runs of this namespace wait for their turn")]
    Crowded,
    #[error("cannot have a process of its own for what could take long")]
    Process { source: std::io::Error },
    #[error("cannot store the result")]
    Store { source: anyhow::Error },
    #[error("the object has no room for any status")]
    NoRoom,
    #[error("the API server answered with a run that cannot be read: {why}")]
    Unreadable { why: String },
}

impl Error {
    pub(crate) fn read(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Read { what, source: Box::new(error) }
    }

    pub(crate) fn write(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Write { what, source: Box::new(error) }
    }

    /// Everything that [`Error::category`] can say.
    pub(crate) const CATEGORIES: [&'static str; 9] =
        ["read", "write", "process", "crowded", "store", "late", "conflict", "no-room", "unreadable"];

    /// A closed set, for metrics.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Process { .. } => "process",
            Self::Crowded => "crowded",
            Self::Store { .. } => "store",
            Self::Late { .. } => "late",
            Self::Conflict => "conflict",
            Self::NoRoom => "no-room",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// The whole chain in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// HTTP status of an answer of the API server.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    response(error).map(|response| response.code)
}

/// The API server's answer, if it gave one.
pub(crate) fn response(error: &kube::Error) -> Option<&Status> {
    if let kube::Error::Api(response) = error { Some(response) } else { None }
}

/// Limits how long a request may take.
pub(crate) async fn within<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Result<T, kube::Error>, Error> {
    tokio::time::timeout(crate::config::REQUEST_LIMIT, request).await.map_err(|_| Error::Late { what })
}
