//! Carrying bytes between a script and where it connects to. A tunnel on which nothing moves holds no buffer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::live::Tunnel;
use crate::wire::Outcome;

/// Bytes that are read at once; they are on the stack. As many are encrypted before they have gone out.
pub const AT_ONCE: usize = 32 << 10;

/// What went through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From the script.
    pub sent: u64,
    /// To the script.
    pub received: u64,
}

/// One direction.
#[derive(Default)]
struct Half {
    /// What the receiver has not taken yet.
    pending: Vec<u8>,
    taken: usize,
    has_ended: bool,
    bytes: u64,
    /// Until then nothing is read: the run has had its bytes of this second.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Carries until both sides have said all, or one of them breaks, or the tunnel has to be cut. `first` was read from the script already.
pub async fn carry(
    script: impl AsyncRead + AsyncWrite,
    there: impl AsyncRead + AsyncWrite,
    first: Vec<u8>,
    tunnel: &Tunnel,
    idle: Duration,
) -> (Outcome, Carried) {
    let (mut script, mut there) = (pin!(script), pin!(there));
    let mut out = Half { bytes: first.len() as u64, pending: first, ..Half::default() };
    let mut back = Half::default();
    if !tunnel.spend(out.pending.len()) {
        return (Outcome::BudgetSpent, Carried::default());
    }
    let mut silence = pin!(sleep_until(Instant::now() + idle));
    let mut cut = pin!(tunnel.is_cut());
    let mut moved_before = 0;
    let outcome = std::future::poll_fn(|context| {
        if cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Outcome::Cut);
        }
        let one = out.poll(context, script.as_mut(), there.as_mut(), tunnel);
        let other = back.poll(context, there.as_mut(), script.as_mut(), tunnel);
        match (one, other) {
            (Poll::Ready(Ok(Moved::All)), Poll::Ready(Ok(Moved::All))) => return Poll::Ready(Outcome::Closed),
            (Poll::Ready(Ok(Moved::Spent)), _) | (_, Poll::Ready(Ok(Moved::Spent))) => return Poll::Ready(Outcome::BudgetSpent),
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(Outcome::Closed),
            _ => {}
        }
        while silence.as_mut().poll(context).is_ready() {
            let moved = out.bytes + back.bytes;
            let is_held_up = out.pause.is_some() || back.pause.is_some();
            if moved == moved_before && !is_held_up {
                return Poll::Ready(Outcome::Idle);
            }
            // So the timer is set once in so long, and not with each byte.
            moved_before = moved;
            silence.as_mut().reset(Instant::now() + idle);
        }
        Poll::Pending
    })
    .await;
    (outcome, Carried { sent: out.bytes, received: back.bytes })
}

enum Moved {
    /// The sender has said all, and the receiver was told so.
    All,
    /// The run has no bytes left.
    Spent,
}

impl Half {
    /// Waits for as long as the run must, which holds a timer only then.
    fn may_read(&mut self, context: &mut Context<'_>, tunnel: &Tunnel) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match tunnel.must_wait() {
                None => return Poll::Ready(()),
                Some(wait) => self.pause = Some(Box::pin(sleep(wait))),
            }
        }
    }

    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        tunnel: &Tunnel,
    ) -> Poll<io::Result<Moved>> {
        loop {
            while self.taken < self.pending.len() {
                match ready!(to.as_mut().poll_write(context, &self.pending[self.taken..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.taken += count,
                }
            }
            self.pending = Vec::new();
            self.taken = 0;
            if self.has_ended {
                ready!(to.as_mut().poll_shutdown(context))?;
                return Poll::Ready(Ok(Moved::All));
            }
            if self.may_read(context, tunnel).is_pending() {
                let _ = to.as_mut().poll_flush(context)?;
                return Poll::Pending;
            }
            #[expect(clippy::large_stack_arrays, reason = "not initialised, and gone before anything is waited for")]
            let mut scratch = [const { MaybeUninit::uninit() }; AT_ONCE];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            if from.as_mut().poll_read(context, &mut buffer)?.is_pending() {
                // What is written into TLS goes out with this.
                let _ = to.as_mut().poll_flush(context)?;
                return Poll::Pending;
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.has_ended = true;
                continue;
            }
            if !tunnel.spend(read.len()) {
                return Poll::Ready(Ok(Moved::Spent));
            }
            self.bytes += read.len() as u64;
            let count = match to.as_mut().poll_write(context, read)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => count,
                Poll::Pending => 0,
            };
            if count < read.len() {
                self.pending = read[count..].to_vec();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;
    use crate::grants::Budget;
    use crate::live::Live;

    /// Whoever may not go on is not silent.
    #[tokio::test]
    async fn a_tunnel_that_is_held_up_is_not_idle() {
        const IDLE: Duration = Duration::from_millis(50);
        let live = Arc::new(Live::default());
        let budget = Budget { tunnels: 2, bytes: 1 << 20, bytes_per_second: Some(1024) };
        let [held, other] = [budget, Budget { bytes_per_second: None, ..budget }].map(|budget| live.open("run", budget).ok().unwrap());
        assert!(held.spend(16 << 10));
        let (mut host, there) = tokio::io::duplex(64);
        let (mut script, here) = tokio::io::duplex(64);
        host.write_all(b"hello").await.unwrap();
        assert!(timeout(10 * IDLE, carry(here, there, Vec::new(), &held, IDLE)).await.is_err());
        assert_eq!(script.read(&mut [0; 8]).await.unwrap(), 0, "nothing came through");
        let ((_host, there), (_script, here)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        assert_eq!(carry(here, there, Vec::new(), &other, IDLE).await.0, Outcome::Idle);
    }
}
