//! Whatever a client sends first: nothing panics, no prefix is read as another name than the whole, and who reads it as TLS reads the same name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_egress::hello::server_name;
use rustls::server::Acceptor;

fuzz_target!(|data: &[u8]| {
    let Ok(Some(name)) = server_name(data) else { return };
    for length in 0..data.len() {
        assert!(!matches!(server_name(&data[..length]), Ok(Some(other)) if other != name), "a prefix has another name");
    }
    let (mut acceptor, mut bytes) = (Acceptor::default(), data);
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok_and(|count| count > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                assert_eq!(accepted.client_hello().server_name(), Some(name.as_str()));
                return;
            }
            Err(_) => return,
        }
    }
});
