//! Conversations with a replica that is played here. That both sides understand each other is shown in `tests/ports.rs`.

use tokio::io::DuplexStream;

use super::*;

fn granted(run: &str, tunnels: u32) -> (String, Arc<Granted>) {
    let told = Told {
        run: run.into(),
        name: "team/run".into(),
        token: String::new(),
        pod: Vec::new(),
        rules: Vec::new(),
        denied: Vec::new(),
        cluster: Vec::new(),
        expires_in: 0,
        tunnels,
        bytes: 1,
        bytes_per_second: None,
    };
    (run.to_owned(), Arc::new(Granted { told, expires: Instant::now() + Duration::from_secs(3600) }))
}

fn all(runs: &[(&str, u32)]) -> Arc<All> {
    Arc::new(runs.iter().map(|(run, tunnels)| granted(run, *tunnels)).collect())
}

fn words(lines: &[Said]) -> Vec<String> {
    let word = |said: &Said| match said {
        Said::Begin {} => "begin".to_owned(),
        Said::Put(told) => format!("put {} {}", told.run, told.tunnels),
        Said::Remove { run } => format!("remove {run}"),
        Said::End {} => "end".to_owned(),
        Said::Beat {} => "beat".to_owned(),
    };
    lines.iter().map(word).collect()
}

#[test]
fn all_is_told_at_first_and_then_what_is_different() {
    let now = Instant::now();
    let mut conversation = Conversation::default();
    let first = all(&[("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(words(&conversation.begin(first.clone(), now)), ["begin", "put a 1", "put b 1", "put c 1", "end"]);
    let mut second = All::clone(&first);
    second.remove("c");
    second.extend([granted("a", 2), granted("d", 1)]);
    assert_eq!(words(&conversation.change(Arc::new(second.clone()), now)), ["remove c", "put a 2", "put d 1"]);
    assert_eq!(words(&conversation.change(Arc::new(second), now)), [""; 0]);
}

#[test]
fn how_long_a_grant_lives_is_counted_from_when_it_is_told() {
    let (_, granted) = granted("a", 1);
    let Said::Put(told) = put(&granted, granted.expires.checked_sub(Duration::from_millis(1500)).unwrap()) else { panic!() };
    assert_eq!(told.expires_in, 1500);
    let Said::Put(told) = put(&granted, granted.expires + BEAT) else { panic!() };
    assert_eq!(told.expires_in, 0);
}

#[test]
fn a_replica_knows_what_it_has_heard_to_the_end() {
    let now = Instant::now();
    let mut conversation = Conversation::default();
    let (first, second) = (all(&[("a", 1)]), all(&[("a", 1), ("b", 1)]));
    conversation.begin(first.clone(), now);
    assert!(conversation.hear(2).unwrap().is_none());
    assert_eq!(conversation.hear(3).unwrap(), Some(first));
    let lines = conversation.change(second.clone(), now).len() as u64;
    assert!(conversation.hear(3 + lines - 1).unwrap().is_none());
    assert_eq!(conversation.hear(3 + lines).unwrap(), Some(second));
    assert!(conversation.hear(4 + lines).is_err(), "it was never said");
    assert!(conversation.hear(2).is_err(), "nobody hears less than before");
}

#[test]
fn a_replica_that_hears_some_and_no_more_is_deaf() {
    let start = Instant::now();
    let mut conversation = Conversation::default();
    conversation.begin(all(&[]), start);
    assert!(!conversation.is_deaf(start + STALE_AFTER / 2));
    conversation.hear(1).unwrap();
    assert!(conversation.is_deaf(start + STALE_AFTER));
    conversation.hear(2).unwrap();
    assert!(!conversation.is_deaf(start + STALE_AFTER));
}

struct Replica {
    stream: BufReader<DuplexStream>,
    wanted: watch::Sender<Arc<All>>,
    known: watch::Receiver<Option<Arc<All>>>,
    reports: mpsc::Receiver<Report>,
    conversation: tokio::task::JoinHandle<Ended>,
}

fn replica(first: Arc<All>) -> Replica {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (wanted, receiver) = watch::channel(first);
    let (sender, known) = watch::channel(None);
    let (reporting, reports) = mpsc::channel(1);
    let conversation = tokio::spawn(async move { converse(ours, receiver, &sender, &reporting).await });
    Replica { stream: BufReader::new(theirs), wanted, known, reports, conversation }
}

impl Replica {
    async fn line(&mut self) -> Said {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn tell(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_follows_what_was_heard_and_ends_with_the_conversation() {
    let first = all(&[("a", 1)]);
    let mut replica = replica(first.clone());
    for expected in ["begin", "put a 1", "end"] {
        assert_eq!(words(&[replica.line().await]), [expected]);
    }
    replica.tell("{\"tell\":\"heard\",\"lines\":3}\n").await;
    replica.known.wait_for(|known| known.as_ref() == Some(&first)).await.unwrap();
    replica.wanted.send_replace(all(&[]));
    while words(&[replica.line().await]) != ["remove a"] {}
    replica
        .tell("{\"tell\":\"report\",\"run\":\"a\",\"name\":\"n/a\",\"to\":\"x\",\"rule\":\"r\",\"outcome\":\"Cut\",\"sent\":1,\"received\":2,\"milliseconds\":3}\n")
        .await;
    assert_eq!(replica.reports.recv().await.unwrap().run, "a");
    let Replica { stream, known, conversation, .. } = replica;
    drop(stream);
    assert!(matches!(conversation.await.unwrap(), Ended::Connection(_)));
    assert_eq!(*known.borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_known_of_a_conversation_that_was_given_up() {
    let all = all(&[]);
    let mut replica = replica(all.clone());
    replica.tell("{\"tell\":\"heard\",\"lines\":2}\n").await;
    replica.known.wait_for(|known| known.as_ref() == Some(&all)).await.unwrap();
    replica.conversation.abort();
    assert!(replica.conversation.await.unwrap_err().is_cancelled());
    assert_eq!(*replica.known.borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn something_is_said_every_second_until_nobody_answers() {
    let mut replica = replica(all(&[]));
    let mut said = Vec::new();
    while said.len() < 6 {
        said.extend(words(&[replica.line().await]));
    }
    assert_eq!(said, ["begin", "end", "beat", "beat", "beat", "beat"]);
    assert!(matches!(replica.conversation.await.unwrap(), Ended::Deaf));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_ends_the_conversation() {
    for text in ["{\"tell\":\"yes\"}\n".to_owned(), "{\"tell\":\"heard\",\"lines\":9}\n".to_owned(), "x".repeat(17_000)] {
        let mut replica = replica(all(&[]));
        let _ = replica.stream.write_all(text.as_bytes()).await;
        assert!(matches!(replica.conversation.await.unwrap(), Ended::Answer), "{text}");
    }
}
