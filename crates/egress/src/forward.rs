//! A request for `http://` on its way to the host, and the answer on its way back. What belongs to one connection does not go on to the next
//! (RFC 9110, 7.6.1), and nothing that was meant for the gateway does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use paddock_destination::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::https::Https;

/// Of the head of an answer.
const HEAD_BYTES: usize = 16 << 10;
/// Fields between two neighbours, beside those that `Connection` names. The gateway answers `Expect` itself.
const OF_ONE_CONNECTION: [HeaderName; 10] = [
    CONNECTION,
    EXPECT,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The request as the host gets it: for the host that was granted, whatever the script wrote into `Host`.
pub fn for_the_host<B>(request: Request<B>, to: &Authority, https: Option<&Https>) -> Request<B> {
    let (mut head, body) = request.into_parts();
    keep_what_goes_on(&mut head.headers);
    let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from(target);
    head.version = Version::HTTP_11;
    let text = to.to_string();
    let usual = if https.is_some() { ":443" } else { ":80" };
    let host = text.strip_suffix(usual).unwrap_or(&text);
    // A name, digits and a colon always are a value.
    if let Ok(host) = HeaderValue::from_str(host) {
        head.headers.insert(HOST, host);
    }
    if let Some(https) = https {
        https.set_fields(&mut head.headers);
    }
    // A host that looks for another request behind this one may find one that nothing was asked for: in the body of a GET, say.
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Request::from_parts(head, body)
}

fn keep_what_goes_on(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_ONE_CONNECTION) {
        fields.remove(name);
    }
}

/// Asks the host, at the other end of `stream`. `None`: what came is no answer.
pub async fn ask<S>(stream: S, request: Request<Incoming>) -> Option<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    // What is queued instead of copied keeps all that it was read along with.
    let (mut host, connection) = http.writev(false).max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await.ok()?;
    // It ends with the answer, or with whoever waits for it.
    tokio::spawn(connection);
    let mut answer = host.send_request(request).await.ok()?;
    // Nobody asked to speak something else.
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    keep_what_goes_on(answer.headers_mut());
    // Words of the host's own beside the status.
    answer.extensions_mut().remove::<ReasonPhrase>();
    // So that an answer without a length that breaks off does not look whole.
    *answer.version_mut() = Version::HTTP_11;
    Some(answer)
}

/// Whether the host has ended what it had to say by itself. An answer without a length is whole only then.
#[derive(Clone, Debug, Default)]
pub struct Ended(Arc<AtomicBool>);

impl Ended {
    /// The connection by which it is found out.
    pub fn told_by<S>(&self, stream: S) -> Told<S> {
        Told { stream, ended: self.clone() }
    }

    /// The connection that breaks off where it is not so.
    pub fn needed_by<S>(&self, stream: S) -> Needed<S> {
        Needed { stream, ended: self.clone() }
    }
}

/// See [`Ended::told_by`].
pub struct Told<S> {
    stream: S,
    ended: Ended,
}

/// See [`Ended::needed_by`].
pub struct Needed<S> {
    stream: S,
    ended: Ended,
}

/// Reads, and says whether that was the end.
fn read<S: AsyncRead + Unpin>(stream: &mut S, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
    let before = buffer.filled().len();
    let could = buffer.remaining() > 0;
    ready!(Pin::new(stream).poll_read(context, buffer))?;
    Poll::Ready(Ok(could && buffer.filled().len() == before))
}

impl<S: AsyncRead + Unpin> AsyncRead for Told<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if ready!(read(&mut self.stream, context, buffer))? {
            self.ended.0.store(true, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Needed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let is_end = ready!(read(&mut self.stream, context, buffer))?;
        if is_end && !self.ended.0.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

macro_rules! write_through {
    ($stream:ident) => {
        impl<S: AsyncWrite + Unpin> AsyncWrite for $stream<S> {
            fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(context, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(context)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(context)
            }
        }
    };
}
write_through!(Told);
write_through!(Needed);

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn told(request: Request<()>, to: &str) -> (String, Vec<String>) {
        let request = for_the_host(request, &Authority::parse(to).unwrap(), None);
        assert_eq!(request.version(), Version::HTTP_11);
        let fields = request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        (request.uri().to_string(), fields.collect())
    }

    #[test]
    fn the_host_gets_what_is_meant_for_it() {
        let request = Request::builder()
            .method(Method::POST)
            .uri("http://api.example.com/x?y=z")
            .version(Version::HTTP_10)
            .header("Host", "other.example.com")
            .header("Proxy-Authorization", "Bearer t")
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Transfer-Encoding", "chunked")
            .header("Upgrade", "websocket")
            .header("Expect", "100-continue")
            .header("Accept", "text/html");
        let (target, mut fields) = told(request.body(()).unwrap(), "api.example.com:80");
        fields.sort();
        assert_eq!(
            (target.as_str(), fields),
            ("/x?y=z", ["accept: text/html", "connection: close", "host: api.example.com"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn a_port_that_is_not_the_usual_one_is_told() {
        let request = Request::builder().uri("http://api.example.com:8080").body(()).unwrap();
        assert_eq!(
            told(request, "api.example.com:8080"),
            ("/".to_owned(), ["host: api.example.com:8080", "connection: close"].map(str::to_owned).to_vec())
        );
    }
}
