//! A bucket in memory of which one request fails, before it was done or after it, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

/// When a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fails {
    /// The server never heard of it.
    Unheard,
    /// It was done, and the answer is lost.
    Unanswered,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flaky {
    pub(super) inner: Arc<InMemory>,
    /// How many requests come before the one that fails.
    left: AtomicUsize,
    fails: Fails,
}

impl Flaky {
    pub(super) fn new(inner: Arc<InMemory>, before: usize, fails: Fails) -> Self {
        Self { inner, left: AtomicUsize::new(before + 1), fails }
    }

    /// Whether the request fails that is made now.
    fn fails(&self) -> Option<Fails> {
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        (before == Ok(1)).then_some(self.fails)
    }

    /// Whether the one that fails was made.
    pub(super) fn has_failed(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl std::fmt::Display for Flaky {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("flaky")
    }
}

fn failure() -> Error {
    Error::Generic { store: "flaky", source: "it was told to fail".into() }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fails = self.fails();
        if fails == Some(Fails::Unheard) {
            return Err(failure());
        }
        let put = self.inner.put_opts(location, payload, options).await;
        if fails.is_some() { Err(failure()) } else { put }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.fails().is_some() { Err(failure()) } else { self.inner.get_opts(location, options).await }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.fails() {
            Some(_) => futures::stream::once(async { Err(failure()) }).boxed(),
            None => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fails() {
            Some(_) => futures::stream::once(async { Err(failure()) }).boxed(),
            None => self.inner.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
