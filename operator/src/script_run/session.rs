//! Listening to a runner and speaking to it. One session for each pod that lives.
//!
//! Attach brings lines within milliseconds and carries what the operator says; the log holds them all. A session puts both into one
//! transcript and wakes the run when there is something new. It decides nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::AsyncBufReadExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, LogParams};
use kube::{Api, Client};
use paddock_protocol::{ControlMessage, Line, Lines, Reader, Refused, RunKey, Transcript, sandbox};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::step::{Stop, StreamSeen};
use crate::error::{Error, within};
use crate::names::CONTAINER;

/// A kubelet looks at the volumes of a new pod when it gets it and then every 300 ms, so that no container of a pod with volumes can be
/// attached to before.
const SOONEST: Duration = Duration::from_millis(300);
/// Pauses between attempts to attach to a container that is being created: a fixed part of the time that it has already taken, so that a
/// start is seen within that part of it, and a slow node is not asked more often than a quick one.
const PAUSE_PART: u32 = 16;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A stream that brings no answer for this long is doubted, and the log is looked at.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);
/// A sandbox that waits is asked again after this long: a stream to a node that is gone stays open for minutes.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// So long an answer holds.
const ANSWER_HOLDS: Duration = Duration::from_secs(7);
/// After so many doubts the stream is given up and opened anew.
const UNANSWERED_LIMIT: u32 = 4;
/// A log is read to at most this many bytes: more than the 4 MiB that a runner writes.
const LOG_LIMIT: i64 = 8 << 20;

/// All sessions, by the UID of the run.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Session>>,
}

struct Session {
    pod: String,
    pod_uid: String,
    shared: Arc<Mutex<Shared>>,
    say: mpsc::Sender<Said>,
    task: JoinHandle<()>,
}

/// Whom a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// A run.
    Run,
    /// Nobody yet: a sandbox that waits. Its log tells what it was, and not what it is, so that only an answer on the open stream counts.
    Nobody { answered: Option<Instant>, since: Instant },
}

struct Shared {
    reader: Reader,
    of: For,
    /// Called when there is something new.
    wake: Waker,
    complete: bool,
    /// It was opened for a script that may run already, and what was said before is in the log alone.
    is_adopted: bool,
    /// The log was read since.
    caught_up: bool,
    start_sent: bool,
    stop_sent: Option<Stop>,
}

/// Wakes whoever a session is for.
pub(crate) type Waker = Arc<dyn Fn() + Send + Sync>;

/// What a runner says that is of no use to anybody, fit to be shown.
pub(crate) fn useless(refused: &Refused) -> String {
    let detail: String = refused.detail.chars().take(256).map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{:?}: {detail}", refused.reason)
}

/// What is known of a sandbox that is nobody's yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nobody listens to it.
    Unheard,
    /// It has not said that it waits, for so long.
    Silent(Duration),
    /// It waits.
    Waits,
    /// It will not run anything, for this reason.
    Useless(String),
}

impl Shared {
    fn new(listening: &Listening, of: For) -> Self {
        let (key, boot) = (listening.key.clone(), listening.boot.as_deref());
        let reader = boot.map_or_else(|| Reader::new(key.clone()), |boot| Reader::of_boot(key.clone(), boot));
        Self {
            reader,
            of,
            wake: listening.wake.clone(),
            is_adopted: boot.is_some(),
            caught_up: false,
            complete: false,
            start_sent: false,
            stop_sent: None,
        }
    }

    /// Takes a line; says whether it told something new.
    fn take_line(&mut self, line: &[u8]) -> bool {
        let news = self.reader.take_line(line);
        match &mut self.of {
            For::Nobody { answered, .. } if matches!(Line::parse(line), Some(Line::Ready { .. })) => {
                let is_first = answered.replace(Instant::now()).is_none();
                news || is_first
            }
            For::Nobody { .. } | For::Run => news,
        }
    }

    /// A stream has just been opened, or has ended: what was said on another does not count.
    fn is_not_heard(&mut self) {
        if let For::Nobody { answered, since } = &mut self.of
            && answered.take().is_some()
        {
            *since = Instant::now();
        }
    }

    fn heard(&self) -> Heard {
        let transcript = self.transcript();
        match (&transcript.refused, self.of) {
            (Some(refused), _) => Heard::Useless(useless(refused)),
            _ if transcript.rebooted => Heard::Useless("it was started a second time".into()),
            (None, For::Nobody { answered: Some(answered), .. }) if transcript.boot.is_some() && answered.elapsed() < ANSWER_HOLDS => {
                Heard::Waits
            }
            (None, For::Nobody { answered, since }) => Heard::Silent(answered.unwrap_or(since).elapsed()),
            (None, For::Run) => Heard::Unheard,
        }
    }

    fn transcript(&self) -> &Arc<Transcript> {
        self.reader.transcript()
    }
}

struct Said {
    messages: Vec<ControlMessage>,
    written: oneshot::Sender<()>,
}

/// Where a pod is and whom to wake.
pub(crate) struct Listening {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    /// Opens what the runner says.
    pub(crate) key: RunKey,
    /// Of the runner that was told to start, once there is one.
    pub(crate) boot: Option<String>,
    /// How old the pod is.
    pub(crate) age: PodAge,
    pub(crate) wake: Waker,
}

/// How old a pod is when somebody begins to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodAge {
    /// It was created at this moment.
    New,
    /// It may run for long.
    Unknown,
}

impl Sessions {
    /// What the session of this run knows about this very pod.
    pub(crate) fn look(&self, run: &str, pod_uid: &str) -> StreamSeen {
        let open = lock(&self.open);
        let Some(session) = open.get(run).filter(|session| session.pod_uid == pod_uid) else {
            return StreamSeen::default();
        };
        let shared = lock(&session.shared);
        StreamSeen {
            transcript: shared.transcript().clone(),
            listening: true,
            complete: shared.complete,
            caught_up: shared.caught_up,
            start_sent: shared.start_sent,
            stop_sent: shared.stop_sent,
        }
    }

    /// What is known when the pod is gone.
    pub(crate) fn remains(&self, run: &str) -> StreamSeen {
        let open = lock(&self.open);
        open.get(run).map_or_else(StreamSeen::default, |session| StreamSeen {
            transcript: lock(&session.shared).transcript().clone(),
            complete: true,
            ..StreamSeen::default()
        })
    }

    /// Begins to listen. A session for another pod of this run ends.
    pub(crate) fn listen(&self, run: &str, listening: Listening) {
        self.open(run, listening, For::Run);
    }

    /// Begins to listen to a sandbox that is nobody's yet.
    pub(crate) fn listen_to_sandbox(&self, name: &str, listening: Listening) {
        self.open(&sandbox(name), listening, For::Nobody { answered: None, since: Instant::now() });
    }

    /// What is known of a sandbox that is nobody's yet.
    pub(crate) fn heard(&self, name: &str) -> Heard {
        let open = lock(&self.open);
        open.get(&sandbox(name)).map_or(Heard::Unheard, |session| lock(&session.shared).heard())
    }

    /// Makes the session of a sandbox that waits that of a run, whose key this is. `false`: the sandbox does not answer at this moment.
    pub(crate) fn claim(&self, name: &str, run: &str, key: RunKey, wake: Waker) -> bool {
        let mut open = lock(&self.open);
        let waiting = sandbox(name);
        let Some(session) = open.get(&waiting).filter(|session| lock(&session.shared).heard() == Heard::Waits) else { return false };
        {
            let mut shared = lock(&session.shared);
            let Some(boot) = shared.transcript().boot.clone() else { return false };
            shared.reader = Reader::of_boot(key.bound_to(run), &boot);
            shared.of = For::Run;
            shared.wake = wake;
        }
        if let Some(session) = open.remove(&waiting)
            && let Some(old) = open.insert(run.to_owned(), session)
        {
            old.task.abort();
        }
        true
    }

    /// Ends the session of a sandbox that is nobody's.
    pub(crate) fn close_sandbox(&self, name: &str) {
        self.close(&sandbox(name));
    }

    /// Ends the sessions of sandboxes that are nobody's yet, but of these.
    pub(crate) fn close_sandboxes_but(&self, known: &HashSet<String>) {
        lock(&self.open).retain(|_, session| {
            let is_over = matches!(lock(&session.shared).of, For::Nobody { .. }) && !known.contains(&session.pod);
            if is_over {
                session.task.abort();
            }
            !is_over
        });
    }

    fn open(&self, run: &str, listening: Listening, of: For) {
        let mut open = lock(&self.open);
        if open.get(run).is_some_and(|session| session.pod_uid == listening.pod_uid) {
            return;
        }
        let shared = Arc::new(Mutex::new(Shared::new(&listening, of)));
        let (say, said) = mpsc::channel(4);
        let (pod, pod_uid) = (listening.pod.clone(), listening.pod_uid.clone());
        let task = tokio::spawn(follow(listening, shared.clone(), said));
        if let Some(old) = open.insert(run.to_owned(), Session { pod, pod_uid, shared, say, task }) {
            old.task.abort();
        }
    }

    /// Says something and waits until it is written, at most `patience`. Without an open stream nothing is written.
    pub(crate) async fn say(&self, run: &str, messages: Vec<ControlMessage>, patience: Duration) -> bool {
        let Some((say, shared)) = lock(&self.open).get(run).map(|session| (session.say.clone(), session.shared.clone())) else {
            return false;
        };
        let (written, is_written) = oneshot::channel();
        let starts = messages.iter().any(|message| matches!(message, ControlMessage::Start { .. }));
        let delivered = async { say.send(Said { messages, written }).await.is_ok() && is_written.await.is_ok() };
        let delivered = tokio::time::timeout(patience, delivered).await.unwrap_or(false);
        if starts {
            lock(&shared).start_sent |= delivered;
        }
        delivered
    }

    /// The pod was told to end, in the way that is sure.
    pub(crate) fn stopped(&self, run: &str, stop: Stop) {
        if let Some(session) = lock(&self.open).get(run) {
            lock(&session.shared).stop_sent = Some(stop);
        }
    }

    /// Reads the log from its beginning, once the pod has ended.
    pub(crate) async fn read_to_the_end(&self, run: &str, listening: Listening) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(listening.client.clone(), &listening.namespace);
        let pod = listening.pod.clone();
        self.listen(run, listening);
        let Some(shared) = lock(&self.open).get(run).map(|session| session.shared.clone()) else {
            return Ok(());
        };
        match within("the log", read_log(&api, &pod, &shared)).await? {
            Ok(_) => {
                lock(&shared).complete = true;
                Ok(())
            }
            // The pod is gone, or the kubelet has no such container: there is no log, and there will be none.
            Err(kube::Error::Api(response)) if matches!(response.code, 400 | 404) => {
                tracing::info!(answer = response.message, "the pod has no log");
                lock(&shared).complete = true;
                Ok(())
            }
            Err(error) => Err(Error::read("the log")(error)),
        }
    }

    /// Ends the session.
    pub(crate) fn close(&self, run: &str) {
        if let Some(session) = lock(&self.open).remove(run) {
            session.task.abort();
        }
    }

    /// Ends the sessions of runs that are gone.
    pub(crate) fn close_all_but(&self, present: &HashSet<String>) {
        lock(&self.open).retain(|run, session| {
            // A sandbox that waits is no run's.
            let stays = present.contains(run) || matches!(lock(&session.shared).of, For::Nobody { .. });
            if !stays {
                session.task.abort();
            }
            stays
        });
    }

    /// Number of open sessions.
    pub(crate) fn len(&self) -> usize {
        lock(&self.open).len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_params() -> LogParams {
    LogParams { container: Some(CONTAINER.into()), limit_bytes: Some(LOG_LIMIT), ..LogParams::default() }
}

/// Reads the log from its beginning, piece by piece: of many runs at once, whole logs would be more than there is room for. Says whether it
/// told something new.
async fn read_log(api: &Api<Pod>, pod: &str, shared: &Mutex<Shared>) -> Result<bool, kube::Error> {
    let mut log = std::pin::pin!(api.log_stream(pod, &log_params()).await?);
    lock(shared).reader.reread();
    let (mut news, mut lines) = (false, Lines::default());
    loop {
        let piece = log.fill_buf().await.map_err(kube::Error::ReadEvents)?;
        if piece.is_empty() {
            return Ok(news);
        }
        lines.push(piece, |line| news |= lock(shared).take_line(line));
        let length = piece.len();
        log.consume_unpin(length);
    }
}

/// Attaches, listens until the stream ends, fills what was missed from the log, attaches again: until the runner has said its last.
async fn follow(listening: Listening, shared: Arc<Mutex<Shared>>, mut said: mpsc::Receiver<Said>) {
    let api: Api<Pod> = Api::namespaced(listening.client.clone(), &listening.namespace);
    let mut silent_since = Instant::now();
    if listening.age == PodAge::New {
        tokio::time::sleep(SOONEST).await;
    }
    loop {
        let params = AttachParams {
            container: Some(CONTAINER.into()),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: false,
            ..AttachParams::default()
        };
        if let Ok(Ok(mut process)) = within("attach", api.attach(&listening.pod, &params)).await
            && let (Some(mut input), Some(mut output)) = (process.stdin(), process.stdout())
        {
            lock(&shared).is_not_heard();
            let _ = write(&mut input, &[ControlMessage::Hello {}]).await;
            // kube ends the connection's task when the connection breaks, but leaves the reader of a broken one waiting for ever.
            tokio::select! {
                biased;
                () = listen(&listening, &api, &shared, &mut said, &mut input, &mut output) => {}
                _ = process.join() => {}
            }
            lock(&shared).is_not_heard();
            if lock(&shared).transcript().boot.is_some() {
                silent_since = Instant::now();
            }
        }
        if lock(&shared).transcript().finished || lock(&shared).complete {
            return;
        }
        // A stream that was cut, or a container that has already ended: the log knows.
        if lock(&shared).transcript().boot.is_some() {
            fill_from_log(&listening, &api, &shared).await;
            if lock(&shared).transcript().finished {
                return;
            }
        }
        {
            // A start message that was written into a stream that broke may be lost. Sending it again is safe: it counts once.
            let mut shared = lock(&shared);
            if shared.start_sent && !shared.transcript().accepted {
                shared.start_sent = false;
                shared.wake.clone()();
            }
        }
        tokio::time::sleep(pause_after(silent_since.elapsed())).await;
    }
}

fn pause_after(silence: Duration) -> Duration {
    (silence / PAUSE_PART).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// After an empty line: what a stream before this one may have left unfinished is no part of it.
async fn write(input: &mut (impl tokio::io::AsyncWrite + Unpin), messages: &[ControlMessage]) -> std::io::Result<()> {
    let lines = messages.iter().fold("\n".to_owned(), |lines, message| lines + &message.to_line());
    input.write_all(lines.as_bytes()).await?;
    input.flush().await
}

/// Until the stream ends in either direction.
async fn listen(
    listening: &Listening,
    api: &Api<Pod>,
    shared: &Mutex<Shared>,
    said: &mut mpsc::Receiver<Said>,
    input: &mut (impl tokio::io::AsyncWrite + Unpin),
    output: &mut (impl tokio::io::AsyncRead + Unpin),
) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut tick = tokio::time::interval(ANSWER_LIMIT);
    // Ticks that nobody waited for are no doubts.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let mut again = tokio::time::interval(ASK_EVERY);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.tick().await;
    let mut unanswered = 0;
    loop {
        tokio::select! {
            _ = again.tick(), if matches!(lock(shared).of, For::Nobody { .. }) => {
                unanswered = 0;
                tick.reset();
                if write(input, &[ControlMessage::Hello {}]).await.is_err() {
                    return;
                }
            }
            _ = tick.tick(), if is_waiting_for_an_answer(shared) => {
                fill_from_log(listening, api, shared).await;
                if !is_waiting_for_an_answer(shared) {
                    continue;
                }
                unanswered += 1;
                if unanswered >= UNANSWERED_LIMIT || write(input, &[ControlMessage::Hello {}]).await.is_err() {
                    return;
                }
            }
            read = output.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let mut news = false;
                    let gap = {
                        let mut shared = lock(shared);
                        lines.push(&buffer[..count], |line| news |= shared.take_line(line));
                        shared.reader.has_gap()
                    };
                    if news {
                        wake_for(shared);
                    }
                    if gap {
                        fill_from_log(listening, api, shared).await;
                    }
                }
            },
            message = said.recv() => match message {
                Some(Said { messages, written }) => {
                    if write(input, &messages).await.is_err() {
                        return;
                    }
                    tick.reset();
                    let _ = written.send(());
                }
                None => return,
            },
        }
    }
}

/// A runner answers at once to a hello and to a start message. A stream on which it does not is deaf, although it is open.
fn is_waiting_for_an_answer(shared: &Mutex<Shared>) -> bool {
    let shared = lock(shared);
    let transcript = shared.transcript();
    let is_over = transcript.refused.is_some() || transcript.finished || transcript.rebooted;
    if let For::Nobody { answered, .. } = shared.of {
        return !is_over && answered.is_none_or(|answered| answered.elapsed() >= ASK_EVERY);
    }
    let is_asked = shared.start_sent || shared.is_adopted && !shared.caught_up;
    !is_over && (transcript.boot.is_none() || (is_asked && !transcript.accepted))
}

fn wake_for(shared: &Mutex<Shared>) {
    let wake = lock(shared).wake.clone();
    wake();
}

async fn fill_from_log(listening: &Listening, api: &Api<Pod>, shared: &Mutex<Shared>) {
    if matches!(lock(shared).of, For::Nobody { .. }) {
        return;
    }
    match within("the log", read_log(api, &listening.pod, shared)).await {
        Ok(Ok(is_news)) => {
            let knew_all = std::mem::replace(&mut lock(shared).caught_up, true);
            if is_news || !knew_all {
                wake_for(shared);
            }
        }
        Ok(Err(error)) => tracing::debug!(error = %error, "the log cannot be read yet"),
        Err(error) => tracing::debug!(error = %error, "the log cannot be read yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_nobody(key: &RunKey) -> Shared {
        Shared {
            reader: Reader::new(key.clone()),
            of: For::Nobody { answered: None, since: Instant::now() },
            wake: Arc::new(|| ()),
            is_adopted: false,
            caught_up: false,
            complete: false,
            start_sent: false,
            stop_sent: None,
        }
    }

    /// What a log says of a sandbox is what it was: only an answer that came on the stream that is open now, and lately, makes it free.
    #[tokio::test]
    async fn a_sandbox_waits_only_as_long_as_it_says_so() {
        let sealing = paddock_protocol::SealingKey::generate();
        let key = sealing.of_sandbox("sp-1");
        let sealer = paddock_protocol::Sealer::new(&key.public(), &sandbox("sp-1")).unwrap();
        let ready = Line::Ready { version: 1, boot: sealer.boot().to_owned() }.to_text().unwrap();
        let mut shared = of_nobody(&key);
        assert!(matches!(shared.heard(), Heard::Silent(_)));
        assert!(shared.take_line(ready.trim_end().as_bytes()));
        assert_eq!(shared.heard(), Heard::Waits);
        assert!(!shared.take_line(ready.trim_end().as_bytes()), "that it still waits is no news");
        shared.is_not_heard();
        assert!(matches!(shared.heard(), Heard::Silent(_)));
        shared.of = For::Nobody { answered: Instant::now().checked_sub(ANSWER_HOLDS), since: Instant::now() };
        assert!(
            matches!(shared.heard(), Heard::Silent(silent) if silent < ANSWER_HOLDS * 2) && is_waiting_for_an_answer(&Mutex::new(shared))
        );
    }

    #[test]
    fn a_sandbox_that_is_started_once_more_or_refuses_is_of_no_use() {
        let key = paddock_protocol::SealingKey::generate().of_sandbox("sp-1");
        let boots = [(); 2].map(|()| paddock_protocol::Sealer::new(&key.public(), &sandbox("sp-1")).unwrap().boot().to_owned());
        let [one, other] = boots.map(|boot| Line::Ready { version: 1, boot }.to_text().unwrap());
        let refused = "pdk1 refused {\"reason\":\"notSandboxed\",\"detail\":\"no\"}".to_owned();
        for said in [[&one, &other], [&refused, &refused]] {
            let mut shared = of_nobody(&key);
            for line in said {
                shared.take_line(line.trim_end().as_bytes());
            }
            assert!(matches!(shared.heard(), Heard::Useless(_)), "{said:?}");
        }
    }

    #[test]
    fn a_start_is_seen_within_a_part_of_its_time() {
        let mut silence = SOONEST;
        let mut attempts = 0;
        while silence < Duration::from_secs(1) {
            silence += pause_after(silence);
            attempts += 1;
        }
        assert!(attempts <= 24, "{attempts}");
        assert_eq!(pause_after(Duration::from_secs(60)), LONGEST_PAUSE);
    }
}
