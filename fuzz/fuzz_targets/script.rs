//! The text of a script, as every language. Syntax trees are not freed, so leaks are not looked for: `cargo fuzz run script -- -detect_leaks=0`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_crds::Language;

fuzz_target!(|script: &[u8]| {
    for language in [Language::Python, Language::JavaScript, Language::TypeScript] {
        let _ = paddock_preflight::examine(language, script);
    }
});
