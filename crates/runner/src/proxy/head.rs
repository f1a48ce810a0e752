//! The head of a request to the proxy: read, and written anew for the gateway with nothing of it but its target. Pure.

/// Longest head, in bytes.
const LONGEST: usize = 16 << 10;
/// Longest target: a name has at most 253 bytes.
const LONGEST_TARGET: usize = 512;

/// What was read of a head so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head<'a> {
    /// There is more to come.
    Part,
    /// The target of a CONNECT, and what followed the head.
    Connect { target: &'a str, rest: &'a [u8] },
    /// Not for a proxy that only connects.
    Other,
}

pub(super) fn read(bytes: &[u8]) -> Head<'_> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() >= LONGEST { Head::Other } else { Head::Part };
    };
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("CONNECT "));
    // Python's http.client says 1.0 up to its version 3.11. To the gateway all of it is 1.1.
    let target = line.and_then(|line| line.strip_suffix(" HTTP/1.1").or_else(|| line.strip_suffix(" HTTP/1.0")));
    // What it means the gateway decides; here it must not become more than one word of one line.
    match target.filter(|target| target.bytes().all(|byte| byte.is_ascii_graphic()) && (1..=LONGEST_TARGET).contains(&target.len())) {
        Some(target) => Head::Connect { target, rest: &bytes[end + 4..] },
        None => Head::Other,
    }
}

/// The request as the gateway gets it. What else the script has said, a token of its own among it, does not go on.
pub(super) fn for_the_gateway(target: &str, token: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {token}\r\n\r\n")
}

/// An answer of the proxy itself.
pub(super) fn answer(status: &str, reason: &str, message: &str) -> String {
    let body = format!("{{\"reason\":\"{reason}\",\"message\":\"{message}\"}}");
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_connect_or_nothing_for_us() {
        assert_eq!(read(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n"), Head::Part);
        let whole = b"CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer mine\r\n\r\nrest";
        assert_eq!(read(whole), Head::Connect { target: "a.example:443", rest: b"rest" });
        let older = b"CONNECT a.example:443 HTTP/1.0\r\n\r\n";
        assert_eq!(read(older), Head::Connect { target: "a.example:443", rest: b"" });
        let empty = b"CONNECT a.example:443 HTTP/1.1\r\n\r\n";
        assert_eq!(read(empty), Head::Connect { target: "a.example:443", rest: b"" });
        for other in [
            &b"GET http://a.example/ HTTP/1.1\r\n\r\n"[..],
            b"CONNECT a.example:443 HTTP/2.0\r\n\r\n",
            b"CONNECT a.example:443 HTTP/1.\r\n\r\n",
            b"CONNECT  HTTP/1.1\r\n\r\n",
            b"CONNECT a b HTTP/1.1\r\n\r\n",
            b"CONNECT a\nX:b HTTP/1.1\r\n\r\n",
            b"CONNECT a\tb HTTP/1.1\r\n\r\n",
            b"CONNECT \xff HTTP/1.1\r\n\r\n",
            b"\r\n\r\n",
            &[b'x'; LONGEST],
        ] {
            assert_eq!(read(other), Head::Other, "{:?}", String::from_utf8_lossy(&other[..other.len().min(40)]));
        }
    }
}
