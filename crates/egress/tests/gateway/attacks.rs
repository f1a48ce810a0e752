//! Every way around the gateway that is known, tried on the whole of it but for its sockets: what a client sends, and what comes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use paddock_egress::wire::Outcome;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, timeout};

use crate::world::{POD, SILENT, TOKEN, World, reason, request, status, world_of};

/// With a server that sends back what it gets.
async fn world() -> World {
    world_of(|mut socket| async move {
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// A ClientHello as a client library makes it.
fn hello(name: &str) -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// What comes through: nothing, if the tunnel is closed without a byte.
async fn echoed(stream: &mut DuplexStream, bytes: &[u8]) -> Vec<u8> {
    let _ = stream.write_all(bytes).await;
    let mut back = vec![0; bytes.len()];
    let mut length = 0;
    while length < back.len() {
        match timeout(Duration::from_secs(20), stream.read(&mut back[length..])).await.unwrap() {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    back.truncate(length);
    back
}

#[tokio::test]
async fn what_is_granted_goes_through_and_is_reported() {
    let mut world = world().await;
    let (head, mut stream) = world.say(&world.request("api.example.com")).await;
    assert_eq!(status(&head), 200, "{head}");
    let hello = hello("api.example.com");
    assert_eq!(echoed(&mut stream, &hello).await, hello);
    assert_eq!(echoed(&mut stream, b"more").await, b"more");
    drop(stream);
    let report = world.report().await;
    let bytes = hello.len() as u64 + 4;
    assert_eq!((report.rule.as_str(), report.outcome, report.sent, report.received), ("example", Outcome::Closed, bytes, bytes));
    assert_eq!((report.to, report.address), (format!("api.example.com:{}", world.port), Some("127.0.0.1".parse().unwrap())));
    assert_eq!(world.gateway.tunnels(), 0);
}

/// By then a name server has been told what the script wrote into the name.
#[tokio::test]
async fn who_goes_away_before_there_is_an_answer_is_reported_all_the_same() {
    let mut world = world().await;
    let mut stream = world.connect(POD);
    stream.write_all(&world.request(SILENT)).await.unwrap();
    world.asked.notified().await;
    drop(stream);
    let report = world.report().await;
    assert_eq!((report.to, report.outcome, report.address), (format!("{SILENT}:{}", world.port), Outcome::Closed, None));
    assert_eq!(world.gateway.tunnels(), 0);
}

#[tokio::test]
async fn a_hello_that_is_split_over_records_and_packets_is_read_whole() {
    let world = world().await;
    let (_, mut stream) = world.say(&world.request("api.example.com")).await;
    let whole = hello("api.example.com");
    // The same message in records of 40 bytes, sent byte by byte.
    let split: Vec<u8> =
        whole[5..].chunks(40).flat_map(|part| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()][..], part].concat()).collect();
    for byte in &split {
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut back = vec![0; split.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, split);
}

#[tokio::test]
async fn bytes_that_come_with_the_request_are_the_hello() {
    let mut world = world().await;
    let hello = hello("api.example.com");
    let (head, mut stream) = world.say(&[world.request("api.example.com"), hello.clone()].concat()).await;
    assert_eq!(status(&head), 200);
    let mut back = vec![0; hello.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, hello);
    let second = [world.request("api.example.com"), b"GET / HTTP/1.1\r\n\r\n".to_vec()].concat();
    let (_, mut stream) = world.say(&second).await;
    assert_eq!(stream.read_u8().await.ok(), None);
    assert_eq!(world.report().await.outcome, Outcome::NotItsHost);
}

/// A ClientHello in one record, with one extension more at its end.
fn with_extension(mut hello: Vec<u8>, kind: u16) -> Vec<u8> {
    const RECORD: usize = 3;
    const MESSAGE: usize = 7;
    const SESSION: usize = 43;
    let two = |bytes: &[u8], at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let suites = SESSION + 1 + usize::from(hello[SESSION]);
    let compression = suites + 2 + two(&hello, suites);
    let extensions = compression + 1 + usize::from(hello[compression]);
    let body = [0; 9];
    for at in [RECORD, MESSAGE, extensions] {
        let longer = u16::try_from(two(&hello, at) + 4 + body.len()).unwrap();
        hello[at..at + 2].copy_from_slice(&longer.to_be_bytes());
    }
    hello.extend_from_slice(&kind.to_be_bytes());
    hello.extend_from_slice(&[0, 9]);
    hello.extend_from_slice(&body);
    hello
}

/// An extension that nobody has heard of is carried: what the others show is what the extension is, and not that there is one.
#[tokio::test]
async fn a_hello_with_an_extension_more_is_carried() {
    let world = world().await;
    let (head, mut stream) = world.say(&world.request("api.example.com")).await;
    assert_eq!(status(&head), 200);
    let hello = with_extension(hello("api.example.com"), 0xfafa);
    stream.write_all(&hello).await.unwrap();
    let mut back = vec![0; hello.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, hello);
}

#[rstest]
#[case::another_name(hello("other.example.com"))]
#[case::no_tls(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec())]
#[case::plain_http(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec())]
#[case::no_name(hello("192.0.2.1"))]
#[case::encrypted_hello(with_extension(hello("api.example.com"), 0xfe0d))]
#[case::encrypted_name(with_extension(hello("api.example.com"), 0xffce))]
#[case::second_name(with_extension(hello("api.example.com"), 0))]
#[tokio::test]
async fn what_does_not_begin_as_tls_for_the_host_goes_nowhere(#[case] first: Vec<u8>) {
    let mut world = world().await;
    let (head, mut stream) = world.say(&world.request("api.example.com")).await;
    assert_eq!(status(&head), 200);
    assert_eq!(echoed(&mut stream, &first).await, b"");
    let report = world.report().await;
    assert_eq!((report.outcome, report.sent, report.received), (Outcome::NotItsHost, 0, 0));
}

#[rstest]
#[case::one_answer_of_two_is_private("inside.example.com", "AddressRefused")]
#[case::link_local("metadata.example.com", "AddressRefused")]
#[case::mapped("mapped.example.com", "AddressRefused")]
#[case::translated("translated.example.com", "AddressRefused")]
#[case::global_but_of_the_cluster("of-the-cluster.example.com", "AddressRefused")]
#[case::nowhere("empty.example.com", "NotResolved")]
#[case::unknown("unknown.example.com", "NotResolved")]
#[case::nobody_there("deaf.example.com", "NotConnected")]
#[tokio::test]
async fn where_a_name_leads_is_looked_at_before_it_is_dialled(#[case] host: &str, #[case] expected: &str) {
    let mut world = world().await;
    let (answer, _) = world.say(&world.request(host)).await;
    assert_eq!(reason(&answer), expected, "{answer}");
    assert_eq!(format!("{:?}", world.report().await.outcome), expected);
    assert_eq!(world.gateway.tunnels(), 0);
}

#[rstest]
#[case::other_port("api.example.com:22", 403)]
#[case::other_host("api.example.net:443", 403)]
#[case::below("a.below.example.org:443", 403)]
#[case::beside("xbelow.example.org:443", 403)]
#[case::suffix("below.example.org.evil.example:443", 403)]
#[case::denied("denied.example.com:PORT", 403)]
#[case::literal("203.0.113.1:443", 403)]
#[case::literal_six("[2001:db8::1]:443", 403)]
#[case::loopback("127.0.0.9:PORT", 403)]
#[case::hexadecimal("0x7f.1:443", 400)]
#[case::number("2130706433:443", 400)]
#[case::octal("0177.0.0.1:443", 400)]
#[case::zone("[fe80::1%25eth0]:443", 400)]
#[case::user("a@below.example.org:443", 400)]
#[case::ports("below.example.org:443:443", 400)]
#[case::no_port("below.example.org", 400)]
#[case::empty_label("below..example.org:443", 400)]
#[case::two_dots("below.example.org..:443", 400)]
#[case::fullwidth("below\u{ff0e}example.org:443", 400)]
#[case::homoglyph("b\u{0435}low.example.org:443", 400)]
#[case::nul("below.example.org\0.x:443", 400)]
#[case::itself("localhost:443", 400)]
#[tokio::test]
async fn no_spelling_of_a_target_reaches_what_is_not_granted(#[case] target: &str, #[case] expected: u16) {
    let world = world().await;
    let target = target.replace("PORT", &world.port.to_string());
    let (answer, _) = world.say(&request(&target, TOKEN)).await;
    assert_eq!(status(&answer), expected, "{answer}");
    if expected == 403 {
        assert!(answer.contains("\"capability\":\"network:") && reason(&answer) == "NotGranted", "{answer}");
    }
}

#[rstest]
#[case::absolute_form_over_tls("GET https://below.example.org/ HTTP/1.1\r\nHost: below.example.org\r\nAUTH\r\n\r\n", 405)]
#[case::origin_form("GET / HTTP/1.1\r\nHost: below.example.org\r\nAUTH\r\n\r\n", 405)]
#[case::body("CONNECT below.example.org:443 HTTP/1.1\r\nContent-Length: 3\r\nAUTH\r\n\r\nabc", 405)]
#[case::chunks("CONNECT below.example.org:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nAUTH\r\n\r\n0\r\n\r\n", 405)]
#[case::both("CONNECT below.example.org:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nAUTH\r\n\r\n", 405)]
#[case::two_lengths("CONNECT below.example.org:443 HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\nAUTH\r\n\r\n", 400)]
#[case::upgrade("CONNECT below.example.org:443 HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\nAUTH\r\n\r\n", 405)]
#[case::old("CONNECT below.example.org:443 HTTP/1.0\r\nAUTH\r\n\r\n", 405)]
// Nothing is answered at all.
#[case::second_version("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0)]
#[case::folded("CONNECT below.example.org:443 HTTP/1.1\r\nX: a\r\n b\r\nAUTH\r\n\r\n", 400)]
#[case::tls_in_tls("\u{16}\u{3}\u{1}\0\u{5}hello", 400)]
#[tokio::test]
async fn a_request_that_could_be_read_in_two_ways_is_refused(#[case] text: &str, #[case] expected: u16) {
    let world = world().await;
    let text = text.replace("AUTH", &format!("Proxy-Authorization: Bearer {TOKEN}"));
    let (answer, _) = world.say(text.as_bytes()).await;
    assert_eq!(status(&answer), expected, "{answer}");
}

/// Headers that other proxies honour.
#[tokio::test]
async fn no_header_leads_elsewhere() {
    let world = world().await;
    let target = format!("api.example.com:{}", world.port);
    let text = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: evil.example:1\r\nX-Upstream-Https-Proxy: evil.example:1\r\nX-Forwarded-For: 10.9.0.8\r\n\
         Forwarded: for=10.9.0.8\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n"
    );
    let (head, mut stream) = world.say(text.as_bytes()).await;
    assert_eq!(status(&head), 200);
    let hello = hello("api.example.com");
    assert_eq!(echoed(&mut stream, &hello).await, hello);
    let (answer, _) = world.say_from("10.9.0.8", text.as_bytes()).await;
    assert_eq!((status(&answer), reason(&answer)), (407, "OtherPod".into()));
}

#[tokio::test]
async fn a_token_counts_for_its_pod_its_run_and_a_gateway_that_knows_it() {
    let world = world().await;
    let asked = async |from: &str, token: &str| reason(&world.say_from(from, &request("other.example.net:443", token)).await.0);
    assert_eq!(asked(POD, TOKEN).await, "NotGranted");
    assert_eq!(asked("10.9.0.8", TOKEN).await, "OtherPod");
    assert_eq!(asked(POD, "another").await, "UnknownToken");
    world.tell(&json!({ "say": "remove", "run": "run" }));
    assert_eq!(asked(POD, TOKEN).await, "UnknownToken", "after the run");
    world.tell(&json!({ "say": "begin" }));
    assert_eq!(asked(POD, TOKEN).await, "NotReady", "a replica that is being told anew");
    world.tell(&json!({ "say": "end" }));
    world.gateway.disconnected(world.operator);
    assert_eq!(asked(POD, TOKEN).await, "NotReady", "a replica that nobody tells anything");
    let fresh = world.begun_anew();
    assert_eq!(reason(&fresh.say(&request("a.example.com:443", TOKEN)).await.0), "NotReady", "a replica that has just started");
}

#[rstest]
#[case::the_run_has_ended(|world: &World| vec![json!({ "say": "remove", "run": "run" }), world.grant()])]
#[case::the_policy_has_changed(|world: &World| {
    let mut less = world.grant();
    less["rules"].as_array_mut().unwrap().remove(1);
    vec![less]
})]
#[case::it_is_not_told_again(|_: &World| vec![json!({ "say": "begin" }), json!({ "say": "end" })])]
#[tokio::test]
async fn what_is_not_granted_any_more_is_cut_at_once(#[case] lines: fn(&World) -> Vec<Value>) {
    let mut world = world().await;
    let (_, mut stream) = world.say(&world.request("api.example.com")).await;
    let hello = hello("api.example.com");
    assert_eq!(echoed(&mut stream, &hello).await, hello);
    // A tunnel that has not said anything yet is one too.
    let (_, mut silent) = world.say(&world.request("api.example.com")).await;
    let began = Instant::now();
    for line in lines(&world) {
        world.tell(&line);
    }
    assert_eq!((stream.read(&mut [0]).await.ok(), silent.read(&mut [0]).await.ok()), (Some(0), Some(0)));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!([world.report().await.outcome, world.report().await.outcome], [Outcome::Cut; 2]);
}

#[tokio::test]
async fn the_same_grant_for_longer_cuts_nothing() {
    let world = world().await;
    let (_, mut stream) = world.say(&world.request("api.example.com")).await;
    let hello = hello("api.example.com");
    assert_eq!(echoed(&mut stream, &hello).await, hello);
    let mut longer = world.grant();
    longer["expiresIn"] = json!(900_000);
    for line in [longer.clone(), json!({ "say": "begin" }), longer, json!({ "say": "end" })] {
        world.tell(&line);
    }
    world.gateway.tick();
    assert_eq!(echoed(&mut stream, b"still").await, b"still");
}

#[tokio::test]
async fn a_run_has_so_many_tunnels_and_bytes() {
    let mut world = world().await;
    let database = request(&format!("127.0.0.1:{}", world.port), TOKEN);
    let mut open = Vec::new();
    for _ in 0..3 {
        let (head, stream) = world.say(&database).await;
        assert_eq!(status(&head), 200);
        open.push(stream);
    }
    assert_eq!(reason(&world.say(&database).await.0), "TooManyTunnels");
    assert_eq!(world.report().await.outcome, Outcome::TooManyTunnels);
    let mut stream = open.pop().unwrap();
    drop(open);
    let (mut read, mut write) = tokio::io::split(stream);
    let writes = tokio::spawn(async move { while write.write_all(&[0; 4096]).await.is_ok() {} });
    let mut all = 0;
    while let Ok(count @ 1..) = read.read(&mut [0; 8192]).await {
        all += count;
    }
    writes.await.unwrap();
    assert!(all <= 500_000, "{all} bytes came back");
    let outcomes = [world.report().await.outcome, world.report().await.outcome, world.report().await.outcome];
    assert!(outcomes.contains(&Outcome::BudgetSpent), "{outcomes:?}");
    assert_eq!(reason(&world.say(&database).await.0), "BudgetSpent");
    stream = world.connect(POD);
    drop(stream);
}

/// However many tunnels it opens.
#[tokio::test]
async fn a_run_has_so_many_bytes_in_a_second() {
    const PER_SECOND: usize = 64 << 10;
    let world = world_of(async |mut socket| _ = socket.write_all(&vec![0; 2 * PER_SECOND]).await).await;
    let mut put = world.grant();
    put["bytesPerSecond"] = json!(PER_SECOND);
    world.tell(&put);
    let database = request(&format!("127.0.0.1:{}", world.port), TOKEN);
    let begin = std::time::Instant::now();
    let one = async {
        let (head, mut stream) = world.say(&database).await;
        assert_eq!(status(&head), 200);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.len()
    };
    let two = async { world.say(&database).await.1.read_to_end(&mut Vec::new()).await.unwrap() };
    assert_eq!(tokio::join!(one, two), (2 * PER_SECOND, 2 * PER_SECOND));
    // Four seconds' worth, of which one comes at once, and of the last no byte has to be made up for.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(2500), "{took:?}");
}

#[tokio::test]
async fn one_address_has_so_many_connections() {
    let world = world().await;
    let peer: IpAddr = POD.parse().unwrap();
    let all: Vec<_> = std::iter::from_fn(|| world.gateway.count(peer)).collect();
    assert_eq!(all.len(), 128);
    assert!(world.gateway.count("10.9.0.8".parse().unwrap()).is_some());
    drop(all);
    assert!(world.gateway.count(peer).is_some());
}

#[rstest]
#[case::a_head_without_end(b"CONNECT below.example.org:443 HTTP/1.1\r\nX: ".to_vec())]
#[case::nothing(Vec::new())]
#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for(#[case] bytes: Vec<u8>) {
    let world = world().await;
    let mut stream = world.connect(POD);
    stream.write_all(&bytes).await.unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_hello_without_end_is_not_waited_for() {
    let mut world = world().await;
    let (_, mut stream) = world.say(&world.request("api.example.com")).await;
    let began = Instant::now();
    // A record that says it is long, and then nothing.
    assert_eq!(echoed(&mut stream, &[22, 3, 1, 0x10, 0, 1, 0, 0xf, 0xfc]).await, b"");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert_eq!(world.report().await.outcome, Outcome::NotItsHost);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let world = world().await;
    let many: String = (0..102).map(|number| format!("X-{number}: a\r\n")).collect();
    let (answer, _) = world.say(format!("CONNECT below.example.org:443 HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(status(&answer), 431);
    let long = format!("CONNECT below.example.org:443 HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    let (answer, _) = world.say(long.as_bytes()).await;
    assert_eq!(status(&answer), 431);
}
