use std::io::Cursor;
use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// What a real client sends first.
fn real(name: &str, protocols: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut sent = Vec::new();
    client.write_tls(&mut sent).unwrap();
    sent
}

fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[4 - bytes..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, content)].concat()
}

fn name(text: &[u8]) -> Vec<u8> {
    extension(0, &vector(2, &[&[0][..], &vector(2, text)].concat()))
}

fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
    let fixed = [&[3, 3][..], &[7; 32], &vector(1, &[]), &vector(2, &[0x13, 1]), &vector(1, &[0])].concat();
    [fixed, vector(2, &extensions.concat())].concat()
}

fn records(body: &[u8], longest: usize) -> Vec<u8> {
    let message = [&[1][..], &vector(3, body)].concat();
    message.chunks(longest).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&body(extensions), LONGEST_RECORD)
}

fn read(bytes: &[u8]) -> Result<Option<String>, BadHello> {
    server_name(bytes).map(|name| name.map(|name| name.to_string()))
}

#[test]
fn a_real_hello_is_read_and_nothing_less_than_all_of_it() {
    let sent = real("API.example.com", &["h2", "http/1.1"]);
    for length in 0..sent.len() {
        assert_eq!(read(&sent[..length]), Ok(None), "{length}");
    }
    assert_eq!(read(&sent), Ok(Some("api.example.com".into())));
    // What follows is the client's own affair: early data, for example.
    assert_eq!(read(&[&sent[..], &[23, 3, 3, 0, 1, 0]].concat()), Ok(Some("api.example.com".into())));
}

#[test]
fn a_hello_in_many_records_is_put_together() {
    for longest in [1, 2, 3, 5, 64] {
        let sent = records(&body(&[name(b"api.example.com")]), longest);
        assert_eq!(read(&sent), Ok(Some("api.example.com".into())), "{longest}");
        assert_eq!(read(&sent[..sent.len() - 1]), Ok(None));
    }
}

#[rstest]
#[case::ssh(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), BadHello::NotTls)]
#[case::http(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec(), BadHello::NotTls)]
#[case::ssl_2(vec![0x80, 0x2e, 1, 3, 1], BadHello::NotTls)]
#[case::alert_first(vec![21, 3, 1, 0, 2, 2, 40], BadHello::NotTls)]
#[case::server_hello(vec![22, 3, 1, 0, 4, 2, 0, 0, 0], BadHello::NotTls)]
#[case::empty_record(vec![22, 3, 1, 0, 0], BadHello::Malformed)]
#[case::long_record(vec![22, 3, 1, 0x40, 1], BadHello::NotTls)]
#[case::long_message(vec![22, 3, 1, 0, 4, 1, 0xff, 0, 0], BadHello::TooLong)]
#[case::without_a_name(hello(&[extension(0x2b, &[2, 3, 4])]), BadHello::NoName)]
#[case::without_extensions(records(&[&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat(), 999), BadHello::NoName)]
#[case::empty_list(hello(&[extension(0, &[0, 0])]), BadHello::NoName)]
#[case::two_extensions(hello(&[name(b"a.example.com"), name(b"b.example.com")]), BadHello::SeveralNames)]
#[case::two_names(
    hello(&[extension(0, &vector(2, &[&[0][..], &vector(2, b"a.example.com"), &[0], &vector(2, b"b.example.com")].concat()))]),
    BadHello::SeveralNames
)]
#[case::other_kind_of_name(hello(&[extension(0, &vector(2, &[&[1][..], &vector(2, b"a.example.com")].concat()))]), BadHello::Malformed)]
#[case::bytes_after_the_list(hello(&[extension(0, &[&vector(2, &[&[0][..], &vector(2, b"a.example.com")].concat())[..], &[0]].concat())]), BadHello::Malformed)]
#[case::extension_twice(hello(&[extension(0x2b, &[2, 3, 4]), extension(0x2b, &[2, 3, 4]), name(b"a.example.com")]), BadHello::Malformed)]
#[case::encrypted(hello(&[name(b"a.example.com"), extension(0xfe0d, &[0; 9])]), BadHello::Encrypted)]
#[case::encrypted_by_the_draft(hello(&[extension(0xffce, &[0; 9]), name(b"a.example.com")]), BadHello::Encrypted)]
#[case::address(hello(&[name(b"192.0.2.1")]), BadHello::Host(BadHost::LooksLikeAnAddress))]
#[case::trailing_dot(hello(&[name(b"a.example.com.")]), BadHello::Host(BadHost::Character))]
#[case::nul(hello(&[name(b"a.example.com\0.evil.example")]), BadHello::Host(BadHost::Character))]
#[case::not_utf8(hello(&[name(b"\xff.example.com")]), BadHello::Host(BadHost::Character))]
#[case::empty_name(hello(&[name(b"")]), BadHello::Host(BadHost::Length))]
#[case::bytes_after_extensions(records(&[body(&[name(b"a.example.com")]), vec![0]].concat(), 999), BadHello::Malformed)]
#[case::odd_ciphers(records(&[&[3, 3][..], &[7; 32], &[0, 0, 3, 0x13, 1, 0, 1, 0, 0, 0]].concat(), 999), BadHello::Malformed)]
#[case::long_session(records(&[&[3, 3][..], &[7; 32], &vector(1, &[0; 33]), &[0, 2, 0x13, 1, 1, 0, 0, 0]].concat(), 999), BadHello::Malformed)]
#[case::second_message_in_the_record(
    { let mut message = [&[1][..], &vector(3, &body(&[name(b"a.example.com")]))].concat(); message.push(1); [&[22, 3, 1][..], &vector(2, &message)].concat() },
    BadHello::Malformed
)]
fn what_could_be_read_in_two_ways_is_refused(#[case] bytes: Vec<u8>, #[case] expected: BadHello) {
    assert_eq!(server_name(&bytes), Err(expected));
}

#[test]
fn what_never_ends_is_refused_at_its_bound() {
    let padding = extension(21, &[0; 16000]);
    let sent = records(&body(&[padding.clone(), extension(0x5500, &[0; 2000]), name(b"a.example.com")]), 900);
    assert!(sent.len() > LONGEST);
    assert_eq!(server_name(&sent), Err(BadHello::TooLong));
    let one_byte_each: Vec<u8> = records(&body(&[padding]), 1).into_iter().take(LONGEST).collect();
    assert_eq!(server_name(&one_byte_each), Err(BadHello::TooLong));
    assert_eq!(server_name(&one_byte_each[..LONGEST - 1]), Ok(None));
}

/// What rustls reads: `None` while it wants more.
fn by_rustls(bytes: &[u8]) -> Option<Result<Option<String>, ()>> {
    let mut acceptor = Acceptor::default();
    let mut rest = Cursor::new(bytes);
    while usize::try_from(rest.position()).unwrap() < bytes.len() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Some(Err(()));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(Ok(accepted.client_hello().server_name().map(str::to_ascii_lowercase))),
            Ok(None) => {}
            Err(_) => return Some(Err(())),
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever is taken here, another implementation takes too, and reads the same name in it.
    #[test]
    fn rustls_reads_the_same_name(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        longest in 1_usize..400,
        protocols in prop::sample::subsequence(vec!["h2", "http/1.1"], 0..=2),
    ) {
        let sent = real("api.example.com", &protocols);
        let mut body = message(&sent).unwrap().unwrap();
        for (index, byte) in flips {
            *index.get_mut(&mut body) = byte;
        }
        let sent = records(&body, longest);
        if let Ok(Some(name)) = server_name(&sent) {
            match by_rustls(&sent) {
                Some(Ok(read)) => prop_assert_eq!(read, Some(name.to_string())),
                // It looks into more fields than these.
                Some(Err(())) => {}
                None => prop_assert!(false, "rustls wants more"),
            }
        }
    }

    #[test]
    fn hostile_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = server_name(&bytes);
        let _ = server_name(&records(&bytes, 100));
    }
}
