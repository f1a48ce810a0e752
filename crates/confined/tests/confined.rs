//! What the process for a question can and cannot do. This program is that process too, so it has a `main` of its own.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use paddock_confined::{Answered, Bounds, ask, serve};

const BOUNDS: Bounds = Bounds {
    argument: "answer",
    cpu_seconds: 1,
    memory: 64 << 20,
    stack: 4 << 20,
    wall: Duration::from_secs(20),
    question: 1 << 10,
    answer: 1 << 10,
};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(BOUNDS.argument) {
        return serve(&BOUNDS, || (), |question: String| answer(&question));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_or(ExitCode::FAILURE, |runtime| runtime.block_on(all()))
}

/// What a question makes the process do.
fn answer(question: &str) -> String {
    match question {
        "think" => (0..1000_u32).map(|number| (number, number.to_string())).collect::<HashMap<_, _>>().len().to_string(),
        "environment" => std::env::vars().count().to_string(),
        "file" => std::fs::read_to_string("/etc/hostname").map_or_else(|error| error.to_string(), |_| "read".into()),
        "socket" => std::net::TcpListener::bind("127.0.0.1:0").map_or_else(|error| error.to_string(), |_| "bound".into()),
        "process" => std::process::Command::new("/bin/true").status().map_or_else(|error| error.to_string(), |_| "started".into()),
        "other process" => std::fs::read_dir("/proc").map_or_else(|error| error.to_string(), |_| "listed".into()),
        "thread" => std::thread::spawn(|| "started").join().unwrap_or_default().to_owned(),
        "time" => loop {
            std::hint::spin_loop();
        },
        "memory" => vec![1_u8; 1 << 30].len().to_string(),
        "much" => "a".repeat(1 << 20),
        "depth" => deep(u64::MAX).to_string(),
        _ => panic!("{question}"),
    }
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn deep(number: u64) -> u64 {
    std::hint::black_box(deep(std::hint::black_box(number - 1)) + 1)
}

async fn all() -> ExitCode {
    let expected = [
        ("think", Answered::Yes("1000".to_owned())),
        ("environment", Answered::Yes("1".to_owned())),
        ("file", Answered::Broke("SIGSYS".to_owned())),
        ("socket", Answered::Broke("SIGSYS".to_owned())),
        ("process", Answered::Broke("SIGSYS".to_owned())),
        ("other process", Answered::Broke("SIGSYS".to_owned())),
        ("thread", Answered::Broke("SIGSYS".to_owned())),
        ("time", Answered::Broke("SIGXCPU".to_owned())),
        ("memory", Answered::Broke("SIGSYS".to_owned())),
        ("depth", Answered::Broke("SIGSYS".to_owned())),
        ("much", Answered::Broke("an answer that is too long".to_owned())),
        ("panic", Answered::Broke("panic".to_owned())),
    ];
    let mut code = ExitCode::SUCCESS;
    for (question, expected) in expected {
        match ask::<String>(&BOUNDS, &question).await {
            Ok(answered) if answered == expected => println!("test {question} ... ok"),
            other => {
                println!("test {question} ... FAILED: {other:?} in place of {expected:?}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
