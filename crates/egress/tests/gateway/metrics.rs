//! What a replica tells Prometheus of itself.

use paddock_egress::metrics::Shown;
use paddock_health::Told as _;
use tokio::io::AsyncWriteExt as _;

use crate::world::{TOKEN, request, status, world_of, world_with};

async fn nothing(_: tokio::net::TcpStream) {}

/// Each line must be there.
fn tells(shown: &Shown, lines: &[&str]) {
    let text = shown.metrics().unwrap();
    for line in lines {
        assert!(text.lines().any(|told| told == *line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn what_is_asked_is_counted_by_its_answer() {
    let world = world_of(|mut socket| async move { socket.shutdown().await.unwrap() }).await;
    let shown = Shown::of(world.gateway.clone());
    tells(&shown, &["paddock_egress_gateway_answers_total{reason=\"OtherPod\"} 0", "paddock_egress_gateway_told 1"]);
    let target = format!("api.example.com:{}", world.port);
    assert_eq!(status(&world.say_from("10.9.0.8", &request(&target, TOKEN)).await.0), 407);
    assert_eq!(status(&world.say(&request(&target, "another")).await.0), 407);
    assert_eq!(status(&world.say(&request("elsewhere.example.net:443", TOKEN)).await.0), 403);
    let (head, tunnel) = world.say(&request(&format!("127.0.0.1:{}", world.port), TOKEN)).await;
    assert_eq!(status(&head), 200, "{head}");
    tells(
        &shown,
        &[
            "paddock_egress_gateway_answers_total{reason=\"OtherPod\"} 1",
            "paddock_egress_gateway_answers_total{reason=\"UnknownToken\"} 1",
            "paddock_egress_gateway_answers_total{reason=\"NotGranted\"} 1",
            "paddock_egress_gateway_answers_total{reason=\"Connected\"} 1",
            "paddock_egress_gateway_connect_seconds_count 1",
            "paddock_egress_gateway_tunnels 1",
            "paddock_egress_gateway_runs 1",
        ],
    );
    drop(tunnel);
    world.gateway.disconnected(world.operator);
    tells(&shown, &["paddock_egress_gateway_told 0"]);
}

/// What the operator is not told is in no log: at least it is known how much that was.
#[tokio::test]
async fn what_nobody_hears_is_counted() {
    let world = world_with(4, nothing).await;
    let shown = Shown::of(world.gateway.clone());
    for _ in 0..70 {
        let _ = world.say(&request("elsewhere.example.net:443", TOKEN)).await;
    }
    tells(&shown, &["paddock_egress_gateway_reports_dropped_total 6"]);
    let held: Vec<_> = std::iter::from_fn(|| world.gateway.count([10, 9, 0, 7].into())).collect();
    assert!(!held.is_empty());
    tells(
        &shown,
        &["paddock_egress_gateway_connections_turned_away_total 1", &format!("paddock_egress_gateway_connections {}", held.len())],
    );
}
