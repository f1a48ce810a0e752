//! Whatever a pod's log holds: nothing panics, memory is bounded, and reading it twice tells no more than reading it once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_protocol::{Lines, MAX_TOTAL, Payload, Reader, Sealer, SealingKey};

// Bytes before the first zero go in as they are; what follows is sealed as a payload by a runner, so that the decoder is reached behind the seal.
fuzz_target!(|data: &[u8]| {
    let Some(key) = SealingKey::from_bytes(&[7; 32]) else { return };
    let key = key.of_run("uid");
    let Some(mut sealer) = Sealer::new(&key.public(), "uid") else { return };
    let ready = format!("pdk1 ready 1 {}\n", sealer.boot());
    let mut log = ready.into_bytes();
    for part in data.split(|byte| *byte == 0) {
        log.extend_from_slice(part);
        log.push(b'\n');
        let payload = Payload::Out { stream: paddock_protocol::Stream::Stdout, offset: part.len() as u64, data: part.iter().take(512).copied().collect() };
        if let Some(text) = sealer.seal(&payload).and_then(|line| line.to_text()) {
            log.extend_from_slice(text.as_bytes());
        }
    }
    let mut reader = Reader::new(key);
    let mut news = false;
    Lines::default().push(&log, |line| _ = reader.take_line(line));
    let once = reader.transcript().clone();
    assert!(once.stdout.head.len() + once.stdout.tail.len() <= MAX_TOTAL);
    reader.reread();
    Lines::default().push(&log, |line| news |= reader.take_line(line));
    assert!(!news || reader.transcript().rebooted, "a second reading told something new");
});
