//! The operator's side of the conversation: what is granted is told to each replica of the gateway, and each tells how far it has heard.
//!
//! What is granted is a value, exchanged as a whole. Each conversation tells what is different from what it told before, so that nothing is
//! lost that was granted while nobody was connected.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::grants::STALE_AFTER;
use crate::wire::{Answer, Report, Said, Told};

/// So often something is said, whether or not anything has changed.
const BEAT: Duration = Duration::from_secs(1);
/// Longest line of a replica, in bytes: a report names a host, a rule and an address.
const LONGEST_ANSWER: u64 = 16 * 1024;

/// What one run is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// As it is told, but for `expires_in`, which is counted from the moment at which it is told.
    pub told: Told,
    /// From then on it is as if it were not there.
    pub expires: Instant,
}

/// What all runs are granted, by their UIDs.
pub type All = BTreeMap<String, Arc<Granted>>;

/// Why a conversation ended. Another may be begun at once.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The connection broke, or was closed.
    #[error("the connection ended: {0}")]
    Connection(#[from] std::io::Error),
    /// The replica has not told for [`STALE_AFTER`] that it heard what was said, or takes nothing in.
    #[error("the replica does not answer")]
    Deaf,
    /// It said something that is not understood, or that it heard what was never said.
    #[error("the replica said something that is not understood")]
    Answer,
    /// Nobody changes any more what is granted.
    #[error("nothing is granted any more")]
    Over,
}

/// Talks with one replica until the connection ends. `known` is what the replica is known to have heard: `None` until it has heard all that is
/// granted, and when the conversation is over.
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite,
    wanted: watch::Receiver<Arc<All>>,
    known: &watch::Sender<Option<Arc<All>>>,
    reports: &mpsc::Sender<Report>,
) -> Ended {
    let (read, write) = tokio::io::split(stream);
    let (sender, heard) = watch::channel(0);
    let _forget = Forget(known);
    tokio::select! {
        ended = listen(read, &sender, reports) => ended,
        ended = speak(write, wanted, heard, known) => ended,
    }
}

/// However a conversation ends, also when it is not waited for any more, nothing is known afterwards.
struct Forget<'a>(&'a watch::Sender<Option<Arc<All>>>);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Hears how far the replica has heard, and what it reports.
async fn listen(read: impl AsyncRead + Unpin, heard: &watch::Sender<u64>, reports: &mpsc::Sender<Report>) -> Ended {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(LONGEST_ANSWER).read_until(b'\n', &mut line).await {
            Ok(0) => return Ended::Connection(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return error.into(),
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Heard { lines }) => _ = heard.send_replace(lines),
            // Where they come faster than they are taken in, they are dropped: what is granted must not wait for them.
            Ok(Answer::Report(report)) => _ = reports.try_send(report),
            Err(_) => return Ended::Answer,
        }
    }
}

async fn speak(
    mut write: impl AsyncWrite + Unpin,
    mut wanted: watch::Receiver<Arc<All>>,
    mut heard: watch::Receiver<u64>,
    known: &watch::Sender<Option<Arc<All>>>,
) -> Ended {
    let all = wanted.borrow_and_update().clone();
    let mut conversation = Conversation::default();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = conversation.begin(all, Instant::now());
    loop {
        match timeout(STALE_AFTER, say(&mut write, &lines)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Ended::Deaf,
        }
        lines.clear();
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => lines = conversation.change(wanted.borrow_and_update().clone(), Instant::now()),
                Err(_) => return Ended::Over,
            },
            Ok(()) = heard.changed() => match conversation.hear(*heard.borrow_and_update()) {
                Ok(Some(all)) => _ = known.send_replace(Some(all)),
                Ok(None) => {}
                Err(ended) => return ended,
            },
            _ = beat.tick() => {
                if conversation.is_deaf(Instant::now()) {
                    return Ended::Deaf;
                }
                lines = vec![conversation.line(Said::Beat {}, Instant::now())];
            }
        }
    }
}

async fn say(write: &mut (impl AsyncWrite + Unpin), lines: &[Said]) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    write.write_all(&text).await?;
    write.flush().await
}

/// Where a conversation stands: what was said, and what of it was heard.
#[derive(Default)]
struct Conversation {
    told: Arc<All>,
    /// Lines that were said.
    lines: u64,
    /// Lines that the replica has heard.
    heard: u64,
    /// What the replica knows when it has heard so many lines.
    unheard: VecDeque<(u64, Arc<All>)>,
    /// Since when some line has not been heard, and nothing more was.
    waiting: Option<Instant>,
}

impl Conversation {
    fn begin(&mut self, all: Arc<All>, now: Instant) -> Vec<Said> {
        let mut lines = vec![self.line(Said::Begin {}, now)];
        lines.extend(all.values().map(|granted| put(granted, now)).map(|said| self.line(said, now)).collect::<Vec<_>>());
        lines.push(self.line(Said::End {}, now));
        self.unheard.push_back((self.lines, all.clone()));
        self.told = all;
        lines
    }

    /// What is different. What was taken away is told first.
    fn change(&mut self, all: Arc<All>, now: Instant) -> Vec<Said> {
        let gone = self.told.keys().filter(|run| !all.contains_key(*run)).map(|run| Said::Remove { run: run.clone() });
        let is_told = |run: &String, granted: &Arc<Granted>| self.told.get(run).is_some_and(|told| told == granted);
        let new = all.iter().filter(|(run, granted)| !is_told(run, granted)).map(|(_, granted)| put(granted, now));
        let said: Vec<Said> = gone.chain(new).collect();
        let lines = said.into_iter().map(|said| self.line(said, now)).collect();
        self.unheard.push_back((self.lines, all.clone()));
        self.told = all;
        lines
    }

    fn line(&mut self, said: Said, now: Instant) -> Said {
        self.lines += 1;
        self.waiting.get_or_insert(now);
        said
    }

    /// The replica has heard so many lines. Returns what it knows by now, if that is more than before.
    fn hear(&mut self, lines: u64) -> Result<Option<Arc<All>>, Ended> {
        if lines > self.lines || lines < self.heard {
            return Err(Ended::Answer);
        }
        self.heard = lines;
        self.waiting = self.waiting.filter(|_| lines < self.lines);
        let mut known = None;
        while let Some((_, all)) = self.unheard.pop_front_if(|(until, _)| *until <= lines) {
            known = Some(all);
        }
        Ok(known)
    }

    fn is_deaf(&self, now: Instant) -> bool {
        self.waiting.is_some_and(|since| now.saturating_duration_since(since) >= STALE_AFTER)
    }
}

fn put(granted: &Granted, now: Instant) -> Said {
    let left = granted.expires.saturating_duration_since(now).as_millis();
    Said::Put(Box::new(Told { expires_in: u64::try_from(left).unwrap_or(u64::MAX), ..granted.told.clone() }))
}

#[cfg(test)]
mod tests;
