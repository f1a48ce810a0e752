//! Requests for `http://`, tried on the whole of the gateway but for its sockets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use paddock_egress::wire::Outcome;
use rstest::rstest;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::{POD, TOKEN, World, reason, status, world_of, world_with};

/// What hosts were told, each request as it came.
type Told = Arc<Mutex<Vec<String>>>;

/// With a host that reads a request, answers with these bytes, and closes where `closes`.
async fn world_that_answers(answer: &'static str, closes: bool) -> (World, Told) {
    let told = Told::default();
    let kept = told.clone();
    let world = world_of(move |socket| serve(socket, kept.clone(), answer, closes)).await;
    (world, told)
}

async fn serve(mut socket: TcpStream, told: Told, answer: &'static str, closes: bool) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    told.lock().unwrap().push(String::from_utf8(request).unwrap());
    let _ = socket.write_all(answer.as_bytes()).await;
    if !closes {
        // Until the gateway goes.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let is_chunked = head.contains("transfer-encoding: chunked");
    length.is_none_or(|length| body.len() >= length) && (!is_chunked || body.ends_with("0\r\n\r\n"))
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\nhello";

impl World {
    fn get(&self, host: &str, fields: &str) -> Vec<u8> {
        self.ask("GET", host, fields, "")
    }

    fn ask(&self, method: &str, host: &str, fields: &str, body: &str) -> Vec<u8> {
        let port = self.port;
        format!("{method} http://{host}:{port}/x?y=z HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {TOKEN}\r\n{fields}\r\n{body}")
            .into_bytes()
    }

    /// All that comes back until the gateway closes.
    async fn answer(&self, request: &[u8]) -> String {
        let mut stream = self.connect(POD);
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn a_request_reaches_the_host_and_its_answer_the_script() {
    let (mut world, told) = world_that_answers(OK, false).await;
    let answer = world.answer(&world.get("api.example.com", "Connection: X-Mine\r\nX-Mine: 1\r\nAccept: */*\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello") && answer.contains("x-kept: 2") && !answer.contains("x-hop"), "{answer}");
    let told = told.lock().unwrap().remove(0);
    let mut lines: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let host = format!("host: api.example.com:{}", world.port);
    assert_eq!(lines, ["GET /x?y=z HTTP/1.1", "accept: */*", "connection: close", &host]);
    let report = world.report().await;
    assert_eq!((report.rule.as_str(), report.outcome), ("plain", Outcome::Closed));
    assert_eq!(report.to, format!("http://api.example.com:{}", world.port));
    assert_eq!((report.sent, report.received), (told.len() as u64, OK.len() as u64));
    assert_eq!(world.gateway.tunnels(), 0);
}

#[rstest]
#[case::length("Content-Length: 4\r\n", "body", "content-length: 4", "\r\n\r\nbody")]
#[case::chunks("Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n", "transfer-encoding: chunked", "\r\n\r\n4\r\nbody\r\n0\r\n\r\n")]
#[tokio::test]
async fn a_body_goes_along(#[case] fields: &str, #[case] body: &str, #[case] field: &str, #[case] end: &str) {
    let (world, told) = world_that_answers(OK, false).await;
    let answer = world.answer(&world.ask("POST", "api.example.com", fields, body)).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let told = told.lock().unwrap().remove(0);
    assert!(told.contains(field) && told.ends_with(end), "{told}");
}

/// Of an answer that ends with its connection.
#[tokio::test]
async fn an_answer_without_a_length_is_whole() {
    let (world, _) = world_that_answers("HTTP/1.0 200 OK\r\n\r\nhello", true).await;
    let answer = world.answer(&world.get("api.example.com", "")).await;
    assert!(answer.contains("transfer-encoding: chunked") && answer.ends_with("\r\n5\r\nhello\r\n0\r\n\r\n"), "{answer}");
}

#[rstest]
#[case::not_granted("www.example.org", 403, "NotGranted")]
#[case::denied("denied.example.com", 403, "NotGranted")]
#[case::address("127.0.0.1", 403, "NotGranted")]
#[case::metadata("metadata.example.com", 403, "AddressRefused")]
#[case::inside("inside.example.com", 403, "AddressRefused")]
#[case::mapped("mapped.example.com", 403, "AddressRefused")]
#[case::nowhere("nowhere.example.com", 502, "NotResolved")]
#[case::deaf("deaf.example.com", 502, "NotConnected")]
#[case::user("api.example.com@evil.example", 400, "BadTarget")]
#[tokio::test]
async fn what_tunnels_do_not_reach_requests_do_not_either(#[case] host: &str, #[case] code: u16, #[case] why: &str) {
    let (world, told) = world_that_answers(OK, false).await;
    let answer = world.answer(&world.get(host, "")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (code, why), "{answer}");
    assert!(told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refusal_says_what_to_ask_for() {
    let (mut world, _) = world_that_answers(OK, false).await;
    let answer = world.answer(&world.get("www.example.org", "")).await;
    assert!(answer.contains(&format!("\"capability\":\"network:http://www.example.org:{}\"", world.port)), "{answer}");
    let report = world.report().await;
    assert_eq!((report.to, report.outcome), (format!("http://www.example.org:{}", world.port), Outcome::NotGranted));
}

/// A rule for TLS opens no plain request, nor one for plain requests a tunnel.
#[tokio::test]
async fn each_rule_is_for_one_way() {
    let (world, told) = world_that_answers(OK, false).await;
    let mut grant = world.grant();
    grant["rules"] = json!([
        { "name": "plain", "to": format!("http://plain.example.com:{}", world.port), "allowed": [["127.0.0.0/30"]] },
        { "name": "tls", "to": format!("api.example.com:{}", world.port), "allowed": [["127.0.0.0/30"]] },
    ]);
    world.tell(&grant);
    let answer = world.answer(&world.get("api.example.com", "")).await;
    assert_eq!(reason(&answer), "NotGranted", "{answer}");
    let answer = world.answer(&world.request("plain.example.com")).await;
    assert_eq!(reason(&answer), "NotGranted", "{answer}");
    assert!(told.lock().unwrap().is_empty());
}

#[rstest]
#[case::two_lengths("Content-Length: 4\r\nContent-Length: 5\r\n", "bodyx")]
#[case::length_and_chunks("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nGET /y HTTP/1.1\r\n\r\n")]
#[case::chunks_that_are_not_last("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n")]
#[case::folded("X: a\r\n b\r\n", "")]
#[case::space_before_the_colon("Content-Length : 4\r\n", "body")]
#[case::after_its_end("", "GET http://api.example.com/second HTTP/1.1\r\n\r\n")]
#[tokio::test]
async fn one_request_is_never_two(#[case] fields: &str, #[case] body: &str) {
    let (world, told) = world_that_answers(OK, false).await;
    world.answer(&world.ask("POST", "api.example.com", fields, body)).await;
    let told = told.lock().unwrap();
    let lines = told.iter().flat_map(|request| request.lines()).filter(|line| line.contains(" HTTP/1."));
    assert!(lines.count() <= 1 && told.len() <= 1, "{told:#?}");
    assert!(told.iter().all(|request| !request.contains("second") && !request.contains("/y")), "{told:#?}");
}

#[rstest]
#[case::no_http("220 mail.example.com ESMTP\r\n")]
#[case::nothing("")]
#[case::another_protocol("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")]
#[tokio::test]
async fn what_is_no_answer_is_told_as_such(#[case] bytes: &'static str) {
    let (mut world, _) = world_that_answers(bytes, true).await;
    let answer = world.answer(&world.get("api.example.com", "Upgrade: x\r\nConnection: upgrade\r\n")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (502, "NoAnswer"), "{answer}");
    assert_eq!(world.report().await.outcome, Outcome::Closed);
}

const PART: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin";

#[tokio::test]
async fn what_is_granted_no_more_is_cut_in_the_middle_of_an_answer() {
    let (mut world, _) = world_that_answers(PART, false).await;
    let mut stream = world.connect(POD);
    stream.write_all(&world.get("api.example.com", "")).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"begin") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
    }
    world.tell(&json!({ "say": "remove", "run": "run" }));
    assert_eq!(world.report().await.outcome, Outcome::Cut);
    let rest = timeout(Duration::from_secs(20), stream.read_buf(&mut answer)).await.unwrap();
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
}

#[tokio::test]
async fn a_budget_that_is_spent_ends_an_answer() {
    let (mut world, _) = world_that_answers(PART, false).await;
    let mut grant = world.grant();
    grant["bytes"] = json!(PART.len());
    world.tell(&grant);
    world.answer(&world.get("api.example.com", "")).await;
    assert_eq!(world.report().await.outcome, Outcome::BudgetSpent);
}

/// It ends with its connection: one that broke, or was cut, must not look like one that has ended.
#[rstest]
#[case::broken(1_000_000)]
#[case::cut(40)]
#[tokio::test]
async fn a_part_of_an_answer_without_a_length_does_not_look_whole(#[case] budget: u64) {
    let world = world_of(|mut socket| async move {
        let mut request = Vec::new();
        while !is_whole(&request) {
            socket.read_buf(&mut request).await.unwrap();
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegin").await.unwrap();
        // So that its end is an error for whoever reads.
        socket.set_zero_linger().unwrap();
    })
    .await;
    let mut grant = world.grant();
    grant["bytes"] = json!(budget);
    world.tell(&grant);
    let answer = world.answer(&world.get("api.example.com", "")).await;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

/// The host has answered before it had the whole request, and has said more than that; the script says nothing more.
#[tokio::test]
async fn a_connection_that_nothing_moves_ends_with_the_grant() {
    let mut world = world_of(|mut socket| async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\nx") {
            socket.read_buf(&mut request).await.unwrap();
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nX").await.unwrap();
    })
    .await;
    let mut grant = world.grant();
    grant["tunnels"] = json!(1);
    world.tell(&grant);
    let mut stream = world.connect(POD);
    stream.write_all(&world.ask("POST", "api.example.com", "Content-Length: 1000000\r\n", "x")).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
    }
    assert_eq!(world.gateway.tunnels(), 1, "it counts as long as it is there");
    world.tell(&json!({ "say": "remove", "run": "run" }));
    let rest = timeout(Duration::from_secs(20), stream.read_buf(&mut answer)).await.unwrap();
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    assert_eq!(world.report().await.outcome, Outcome::Cut);
    assert_eq!(world.gateway.tunnels(), 0);
}

/// They hold more than tunnels do.
#[tokio::test]
async fn requests_are_a_part_of_all_connections() {
    let told = Told::default();
    let world = world_with(8, move |socket| serve(socket, told.clone(), PART, false)).await;
    let mut stream = world.connect(POD);
    stream.write_all(&world.get("api.example.com", "")).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"begin") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
    }
    let answer = world.answer(&world.get("api.example.com", "")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (429, "TooManyTunnels"), "{answer}");
    let (head, _stream) = world.say(&world.request("api.example.com")).await;
    assert_eq!(status(&head), 200, "{head}");
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_holds_no_tunnel() {
    let (mut world, _) = world_that_answers("", false).await;
    let mut stream = world.connect(POD);
    stream.write_all(&world.get("api.example.com", "")).await.unwrap();
    // It has reached the host by then.
    while world.gateway.tunnels() == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    assert_eq!(world.report().await.outcome, Outcome::Closed);
    assert_eq!(world.gateway.tunnels(), 0);
}
