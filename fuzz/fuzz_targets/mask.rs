//! Whatever a script prints: nothing panics, and what was covered once is not found again.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use paddock_mask::{Counts, Cut, Detector, Masker};

static MASKER: LazyLock<Option<Masker>> =
    LazyLock::new(|| Masker::new(Detector::ALL.into(), &[], &[("db".into(), b"correct-horse-battery".to_vec())]).ok());

fuzz_target!(|data: &[u8]| {
    let Some(masker) = MASKER.as_ref() else { return };
    let cut = Cut { start: data.first().is_some_and(|byte| byte & 1 == 1), end: data.first().is_some_and(|byte| byte & 2 == 2) };
    let masked = masker.mask(data, cut);
    let whole = masked.whole();
    assert!(!whole.text.windows(21).any(|window| window == b"correct-horse-battery"));
    for at in [0, 1, data.len() / 2, data.len()] {
        assert!(masked.head(at).text.len() <= whole.text.len() && masked.tail(at).text.len() <= whole.text.len());
    }
    if let Ok(mut value) = serde_json::from_slice(data) {
        masker.mask_json(&mut value, &mut Counts::new());
    }
});
